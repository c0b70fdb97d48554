#include "binding_shared.hpp"

namespace moeprof {

std::vector<std::string> paths() {
    std::vector<std::string> names;
    visit_paths([&](const Path& path) { names.emplace_back(path.name); });
    return names;
}

const Path& path_of(const std::optional<std::string>& name) {
    const Path* found = nullptr;
    visit_paths([&](const Path& path) {
        if (!name || *name == path.name) found = &path;
    });
    if (found == nullptr) {
        std::string known;
        for (const std::string& path : paths()) known += (known.empty() ? "" : ", ") + path;
        refuse("path: '" + *name + "', this machine has " + known);
    }
    return *found;
}

}  // namespace moeprof
