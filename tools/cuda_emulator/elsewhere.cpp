#include "engine.h"

namespace emu {

namespace {
std::function<void(const Launched&)> elsewhere;
}  // namespace

std::vector<Array> arrays() {
    std::vector<Array> result;
    for_each_allocation([&](const Allocation& a) {
        result.push_back({reinterpret_cast<void*>(a.begin), reinterpret_cast<void*>(a.end), a.name});
    });
    return result;
}

void set_elsewhere(std::function<void(const Launched&)> runner) {
    elsewhere = std::move(runner);
}
bool is_elsewhere() {
    return bool(elsewhere);
}
void run_elsewhere(const Launched& launched) {
    elsewhere(launched);
}

}  // namespace emu
