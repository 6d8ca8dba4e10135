#include "strings.h"

namespace outpace {
namespace {

constexpr int64_t kLengthBytes = 8;

uint64_t read_length(const uint8_t* p) {
  uint64_t length = 0;
  for (int64_t i = 0; i < kLengthBytes; ++i) length |= uint64_t{p[i]} << 8 * i;
  return length;
}

}  // namespace

nanobind::object read_strings(const uint8_t* bytes, int64_t start, int64_t end, int64_t count) {
  namespace nb = nanobind;
  const nb::object strings = nb::steal(PyList_New(static_cast<Py_ssize_t>(count)));
  if (!strings.is_valid()) throw nb::python_error();
  int64_t at = start;
  for (int64_t i = 0; i < count; ++i) {
    if (end - at < kLengthBytes) return nb::none();
    const uint64_t length = read_length(bytes + at);
    at += kLengthBytes;
    if (length > static_cast<uint64_t>(end - at)) return nb::none();
    PyObject* string = PyUnicode_DecodeUTF8(reinterpret_cast<const char*>(bytes + at), static_cast<Py_ssize_t>(length), nullptr);
    if (string == nullptr) {
      if (!PyErr_ExceptionMatches(PyExc_UnicodeDecodeError)) throw nb::python_error();
      PyErr_Clear();
      return nb::none();
    }
    PyList_SetItem(strings.ptr(), static_cast<Py_ssize_t>(i), string);
    at += static_cast<int64_t>(length);
  }
  return nb::make_tuple(strings, at);
}

}  // namespace outpace
