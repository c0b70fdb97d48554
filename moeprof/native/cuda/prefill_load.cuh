// What the blocks of a prefill's products read, in the order in which they use it, copied ahead
// into a ring of stages in shared memory. A stage is one group of a panel's quads and the same
// group of the tile's activation rows.
#pragma once

#include "prefill_call.cuh"

namespace moeprof {
namespace {

constexpr std::uint32_t kTileThreads = 256;

template <Format kFormat>
struct StageOf {
    static constexpr std::uint32_t kQuadBytes = GroupOf<kFormat>::kBytes;
    static constexpr std::uint32_t kTokens = TileOf<kFormat>::kTokens;
    // Offsets: quads, activations [tokens, 256], their scales [blocks, tokens].
    static constexpr std::uint32_t kRows = kPanelQuads * kQuadBytes;
    static constexpr std::uint32_t kScales = kRows + kTokens * ReadyOf<kFormat>::kRowBytes;
    static constexpr std::uint32_t kBytes =
        kScales + kTokens * kBlocksAbreast * ReadyOf<kFormat>::kScaleBytes;
};

// Where 16-byte pieces lie, so that eight lanes that read at once use all banks: words of quads,
// [word, 4 rows, 2 halves of 8 blocks], and pieces of an activation row.
__device__ __forceinline__ std::uint32_t word_piece(std::uint32_t word, std::uint32_t row,
                                                    std::uint32_t half) {
    return word * 8 + ((row * 2 + half) ^ ((word & 1) | (word & 2) << 1));
}

template <Format kFormat>
__device__ __forceinline__ std::uint32_t row_piece(std::uint32_t token, std::uint32_t piece) {
    return kFormat == Format::kBf16 ? piece ^ (token & 3) << 1 : piece ^ (token & 1) << 2;
}

// One tile: a panel of an expert's weights and a run of its tokens.
struct Tile {
    const std::uint8_t* packed;
    std::uint32_t first;  // place of the first token
    std::uint32_t num_tokens;
    std::uint32_t panel;
    std::uint32_t ring_place;  // kNowhere: not in the ring
};

// The tiles of one block: from `first` on in steps of `step`.
struct Share {
    const PrefillRun* runs;
    std::uint32_t first;
    std::uint32_t step;
    std::uint32_t num_tiles;
    bool from_ring;
};

// What all threads of a block know of its tiles, in shared memory.
struct TileQueue {
    static constexpr std::uint32_t kTiles = 8;  // that may be under way, more than kMostStages
    Share share;
    Tile tiles[kTiles];              // in turn
    alignas(16) PrefillRun runs[2];  // of the next tiles, in turn
};

// All threads of a block call `push` for a stage after the other; tiles follow each other without a
// pause, also where a panel must first arrive. A thread keeps little between the calls: its
// registers are full of sums.
template <Format kFormat, Projection kProjection>
class Loader {
  public:
    // The queue's share is set.
    __device__ Loader(const PrefillCall& call, TileQueue& queue)
        : call_(call), queue_(queue), next_(queue.share.first) {
        open();
    }

    // Copies the next stage, if there is one.
    __device__ __forceinline__ void push(SharedAddress stage) {
        if (group_ < shape().groups) {
            copy_weights(stage);
            copy_rows(stage);
            if (++group_ == shape().groups) open();
        }
        close_batch();
    }

  private:
    using Stage = StageOf<kFormat>;
    using Ready = ReadyOf<kFormat>;
    static constexpr std::uint32_t kPerToken = kTileThreads / Stage::kTokens;  // threads

    __device__ __forceinline__ const PanelShape& shape() const {
        return call_.shapes[static_cast<int>(kProjection)];
    }

    // Whether what is known of a tile is here before its turn if it is copied at the beginning of
    // the one before.
    __device__ __forceinline__ bool copies_runs() const {
        return shape().groups >= call_.stages - 1;
    }

    // Goes to the next tile; after the last one `group_` stays behind the last group.
    __device__ __forceinline__ void open() {
        const Share& share = queue_.share;
        if (next_ >= share.num_tiles) {
            group_ = shape().groups;
            return;
        }
        const PrefillRun run = opened_ > 1 && copies_runs() ? queue_.runs[opened_ % 2]
                                                            : share.runs[next_ / shape().panels];
        const std::uint32_t inside = next_ - run.first_run * shape().panels;
        Tile tile;
        tile.packed = run.packed;
        tile.panel = inside / run.num_runs;
        const std::uint32_t skipped = inside % run.num_runs * Stage::kTokens;
        tile.first = run.first + skipped;
        tile.num_tokens = min(Stage::kTokens, run.num_tokens - skipped);
        tile.ring_place = kNowhere;
        const std::uint8_t* panel = run.packed + shape().panel_start(tile.panel);
        if (share.from_ring) {
            const std::uint32_t number = run.order * shape().panels + tile.panel;
            tile.ring_place = number % kRingPanels;
            await(tile.ring_place, number);
            panel = call_.ring + std::size_t{tile.ring_place} * shape().panel_bytes();
        }
        if (threadIdx.x == 0) queue_.tiles[opened_ % TileQueue::kTiles] = tile;
        ++opened_;
        group_ = 0;
        // A panel has an even number of quads.
        const std::uint32_t quad =
            min(threadIdx.x / kWarp * 2, shape().panel_quads(tile.panel) - 2);
        weights_ = panel + quad * shape().quad_bytes;
        const std::uint32_t place = tile.first + min(threadIdx.x / kPerToken, tile.num_tokens - 1);
        if constexpr (kProjection == Projection::kGateUp) {
            row_ =
                call_.rows + std::size_t{call_.tokens[place]} * Ready::row_bytes(shape().row_size);
        } else {
            row_ = call_.between + std::size_t{place} * Ready::row_bytes(shape().row_size);
        }
        next_ += share.step;
        if (next_ < share.num_tiles && copies_runs() && threadIdx.x < 2) {
            const PrefillRun* ahead = share.runs + next_ / shape().panels;
            copy_later(address_of(queue_.runs + opened_ % 2) + threadIdx.x * 16,
                       reinterpret_cast<const uint4*>(ahead) + threadIdx.x);
        }
    }

    __device__ void await(std::uint32_t place, std::uint32_t number) const {
        const PanelRing& ring = call_.state->rings[static_cast<int>(kProjection)];
        if (threadIdx.x == 0) {
            while (load_acquire(&ring.arrived[place]) != number + 1) pause();
        }
        __syncthreads();
    }

    __device__ __forceinline__ void copy_weights(SharedAddress stage) {
        const bool is_full = (group_ + 1) * GroupOf<kFormat>::kValues <= shape().row_size;
#pragma unroll
        for (std::uint32_t i = 0; i < 2; ++i) {
            const SharedAddress to = stage + (threadIdx.x / kWarp * 2 + i) * Stage::kQuadBytes;
            const std::uint8_t* from = weights_ + i * shape().quad_bytes;
            if (is_full) {
                copy_quad(to, from);
            } else {
                copy_rest(to, from);
            }
        }
        weights_ += Stage::kQuadBytes;
    }

    __device__ __forceinline__ void copy_quad(SharedAddress to, const std::uint8_t* from) const {
        constexpr std::uint32_t kPieces = Stage::kQuadBytes / 16;
        const std::uint32_t lane = threadIdx.x % kWarp;
#pragma unroll
        for (std::uint32_t start = 0; start < kPieces; start += kWarp) {
            const std::uint32_t piece = start + lane;
            if (piece < kPieces) copy_later(to + place_of(piece) * 16, from + piece * 16);
        }
    }

    __device__ static std::uint32_t place_of(std::uint32_t piece) {
        if (kFormat == Format::kBf16 || piece < 4) return piece;
        const std::uint32_t word = (piece - 4) / 8, rest = (piece - 4) % 8;
        return 4 + word_piece(word, rest / 2, rest % 2);
    }

    // A last group that is not full, in the order of full ones; where it has no blocks, scales are
    // 0 and activations, too.
    __device__ __forceinline__ void copy_rest(SharedAddress to, const std::uint8_t* from) const {
        const std::uint32_t lane = threadIdx.x % kWarp;
        const std::uint32_t left = shape().row_size - group_ * GroupOf<kFormat>::kValues;
        if constexpr (kFormat == Format::kBf16) {
            for (std::uint32_t piece = lane; piece < Stage::kQuadBytes / 16; piece += kWarp) {
                const bool wanted = piece * 16 < left * kQuad * 2;
                copy_later_or_clear(to + piece * 16, wanted ? from + piece * 16 : from, wanted);
            }
        } else {
            constexpr std::uint32_t kWords = kFormat == Format::kQ8_0 ? 8 : 4;
            const std::uint32_t blocks = left / kBlock;
            const std::uint32_t row = lane / 8, block = lane % 8;
            const auto* scales = reinterpret_cast<const std::uint16_t*>(from);
            store_shared_half(to + lane * kScaleBytes,
                              block < blocks ? scales[row * blocks + block] : std::uint16_t{0});
            if (block >= blocks) return;
            const std::uint8_t* word =
                from + kQuad * blocks * kScaleBytes + (row * blocks + block) * 4;
            for (std::uint32_t k = 0; k < kWords; ++k, word += kQuad * blocks * 4) {
                copy_word_later(to + kQuad * kBlocksAbreast * kScaleBytes +
                                    word_piece(k, row, block / 4) * 16 + block % 4 * 4,
                                word);
            }
        }
    }

    __device__ __forceinline__ void copy_rows(SharedAddress stage) {
        const std::uint32_t token = threadIdx.x / kPerToken, part = threadIdx.x % kPerToken;
        const std::uint8_t* from = row_;
        const SharedAddress to = stage + Stage::kRows + token * Ready::kRowBytes;
#pragma unroll
        for (std::uint32_t piece = part; piece < Ready::kRowBytes / 16; piece += kPerToken) {
            copy_later(to + row_piece<kFormat>(token, piece) * 16, from + piece * 16);
        }
        if constexpr (kFormat != Format::kBf16) {
            static_assert(kPerToken == kBlocksAbreast);
            copy_word_later(
                stage + Stage::kScales + (part * Stage::kTokens + token) * Ready::kScaleBytes,
                from + Ready::kRowBytes + part * Ready::kScaleBytes);
        }
        row_ += Ready::kGroupBytes;
    }

    const PrefillCall& call_;
    TileQueue& queue_;
    const std::uint8_t* weights_ = nullptr;
    const std::uint8_t* row_ = nullptr;
    std::uint32_t next_;
    std::uint32_t group_ = 0;
    std::uint32_t opened_ = 0;
};

}  // namespace
}  // namespace moeprof
