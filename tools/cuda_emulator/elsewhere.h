// Launches for somebody else: kernels are not run here, but handed over as the CUDA driver would get them. tools/ptx
// runs what nvcc made of them. A part of emulator.h, which includes it: what starts a kernel asks is_elsewhere() first.
#pragma once

#include <functional>
#include <string>
#include <tuple>
#include <vector>

namespace emu {

/// Each parameter's bytes as this compiler lays them out, at its alignment.
struct Launched {
    struct Parameter {
        size_t offset, bytes, alignment;
    };
    Shape shape;
    std::vector<Parameter> parameters;
    std::string bytes;

    template <class... Params>
    Launched(const Shape& shape, const std::tuple<Params...>& values) : shape(shape) {
        std::apply([&](const auto&... each) { (add(&each, sizeof each, alignof(decltype(each))), ...); }, values);
    }

   private:
    void add(const void* p, size_t n, size_t alignment) {
        bytes.resize((bytes.size() + alignment - 1) / alignment * alignment, 0);
        parameters.push_back({bytes.size(), n, alignment});
        bytes.append(static_cast<const char*>(p), n);
    }
};

/// Memory that kernels may touch.
struct Array {
    const void *begin, *end;
    std::string name;
};
EMU_API std::vector<Array> arrays();

/// Who runs kernels from now on, on the launching thread; empty: the emulator again.
EMU_API void set_elsewhere(std::function<void(const Launched&)> runner);
EMU_API bool is_elsewhere();
EMU_API void run_elsewhere(const Launched& launched);

}  // namespace emu
