#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

// What a decode step does outside the experts: one query token per sequence, one token per product.
// Every function enqueues on the stream it is given, never synchronises, and may be captured.

namespace moeprof::cuda {

enum class Element : int { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2 };

/// Attention of one query token per sequence over a cache with grouped heads.
///
/// query [B, H, Dk], keys [B, G, L, Dk], values [B, G, L, Dv], mask [B, L], sinks [H], output
/// [B, H, Dv]; H is a multiple of G. Strides count elements; the last dimension is contiguous and
/// every row starts on 16 bytes.
struct DecodeAttention {
    const void* query;
    const void* keys;
    const void* values;
    const bool* mask;   // true where a position is seen; null where all are
    const void* sinks;  // a logit per head that takes probability and adds nothing; null for none
    void* output;
    float* partial;  // of `attention_partial_floats` elements
    unsigned*
        tickets;      // [B * G * H / heads of a block], zero before the first launch and after each
    Element element;  // of query, keys, values, sinks and output
    int batch;
    int heads;
    int groups;
    int length;
    int key_size;
    int value_size;
    int splits;                     // from `attention_splits`
    std::int64_t query_strides[2];  // of batch and head
    std::int64_t key_strides[3];    // of batch, group and position
    std::int64_t value_strides[3];
    std::int64_t mask_stride;  // of batch
    float scaling;
    float softcap;  // scores become softcap * tanh(score / softcap); 0 for none
};

/// Into how many parts the context is split. It depends on shapes alone, so that equal shapes give
/// equal bits whatever the mask.
int attention_splits(int batch, int heads, int groups, int length);

/// Elements of the workspace that the parts meet in, and tickets they meet by.
std::int64_t attention_partial_floats(int batch, int heads, int value_size, int splits);
int attention_tickets(int batch, int heads, int groups);

/// Largest size of a head; sizes are multiples of 16 bytes.
inline constexpr int kMostHeadSize = 256;

cudaError_t decode_attention(const DecodeAttention& job, cudaStream_t stream);

/// Up to four matrices that multiply the same row: outputs[i] = weights[i] row + biases[i].
///
/// row [K], weights [N_i, K], biases [N_i] or null, outputs [N_i], all contiguous and of one
/// element type; K is a multiple of 16 bytes and every pointer starts on 16 bytes.
///
/// With scales [N_i, K / 32] float16, weights are uint8: value = (weight - 128) * scale, and K is a
/// multiple of 32. All matrices have scales, or none has.
struct RowProducts {
    static constexpr int kMost = 4;
    const void* row;
    const void* weights[kMost];
    const std::uint16_t* scales[kMost];
    const void* biases[kMost];
    void* outputs[kMost];
    int rows[kMost];
    int count;
    int columns;
    Element element;
};

cudaError_t row_products(const RowProducts& job, cudaStream_t stream);

/// How a plain router turns logits into choices.
enum class Score : int { kSoftmax = 0, kSigmoid = 1 };

/// A plain router for one token: logits = weight row + bias; scores by `score`; the top_k largest
/// of score + correction, in descending order, equal ones by ascending id; their scores, divided by
/// their sum where `normalized`, times `scaling`.
struct Route {
    const void* row;          // [K] of `row_element`
    const void* weight;       // [E, K] of `weight_element`
    const void* bias;         // [E] of `weight_element`, or null
    const float* correction;  // [E], or null
    void* logits;             // [E] of `logit_element`
    void* weights;            // [top_k] of `output_element`
    std::int64_t* ids;        // [top_k]
    unsigned* ticket;         // zero before the first launch and after each
    Element row_element;
    Element weight_element;
    Element logit_element;  // logits are rounded to it before they are scored
    Element output_element;
    int columns;
    int experts;
    int top_k;
    Score score;
    bool normalized;
    float scaling;
};

inline constexpr float kTiny = 1e-20F;    // added to the sum that divides
inline constexpr int kMostRouted = 1024;  // experts
inline constexpr int kMostChosen = 32;    // top_k

cudaError_t route(const Route& job, cudaStream_t stream);

}  // namespace moeprof::cuda
