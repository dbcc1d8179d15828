// The list of common/limits.h as a named tuple of Python: attribute `LIMITS` of a module, of its type `Limits`.
#pragma once

#include <pybind11/pybind11.h>

#include "../common/limits.h"

inline pybind11::object as_python(const wals::limits::Sizes& sizes) {
    const auto& each = sizes.each;
    return pybind11::make_tuple(each[0], each[1], each[2], each[3]);
}
template <class T>
pybind11::object as_python(T value) {
    return pybind11::cast(value);
}

inline void bind_limits(pybind11::module_& m) {
    pybind11::list names, values;
#define WALS_LIMIT(type, name, ...) \
    names.append(#name);            \
    values.append(as_python(wals::limits::name));
#include "../common/limits.h"
#undef WALS_LIMIT
    const pybind11::object type =
        pybind11::module_::import("collections")
            .attr("namedtuple")("Limits", names, pybind11::arg("module") = m.attr("__name__"));
    m.attr("Limits") = type;
    m.attr("LIMITS") = type(*values);
}
