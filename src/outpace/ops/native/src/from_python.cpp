#include "from_python.h"

#include <nanobind/ndarray.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>

#include <stdexcept>
#include <string>

namespace nb = nanobind;

namespace outpace {
namespace {

// An attribute's name, interned once: looking it up then costs a pointer comparison.
class Name {
 public:
  explicit Name(const char* text) : text_(PyUnicode_InternFromString(text)) {}
  nb::object of(nb::handle object) const {
    PyObject* value = PyObject_GetAttr(object.ptr(), text_);
    if (value == nullptr) nb::raise_python_error();
    return nb::steal(value);
  }

 private:
  PyObject* text_;
};

int64_t as_int(nb::handle value, const char* what, int64_t least, int64_t most) {
  int overflow = 0;
  const long long number = PyLong_AsLongLongAndOverflow(value.ptr(), &overflow);
  if (number == -1 && overflow == 0 && PyErr_Occurred()) {
    PyErr_Clear();
    throw std::invalid_argument(std::string(what) + " must be an integer, got " +
                                nb::cast<std::string>(nb::repr(value)));
  }
  if (overflow != 0 || number < least || number > most) {
    throw std::invalid_argument(std::string(what) + " must be in [" + std::to_string(least) + ", " +
                                std::to_string(most) + "], got " + nb::cast<std::string>(nb::repr(value)));
  }
  return number;
}

uint64_t as_seed(nb::handle value) {
  const unsigned long long seed = PyLong_AsUnsignedLongLong(value.ptr());
  if (PyErr_Occurred()) {
    PyErr_Clear();
    throw std::invalid_argument("a row's seed must be an integer in [0, 2^64), got " +
                                nb::cast<std::string>(nb::repr(value)));
  }
  return seed;
}

double as_double(nb::handle value, const char* what) {
  const double number = PyFloat_AsDouble(value.ptr());
  if (number == -1.0 && PyErr_Occurred()) {
    PyErr_Clear();
    throw std::invalid_argument(std::string(what) + " must be a number, got " + nb::cast<std::string>(nb::repr(value)));
  }
  return number;
}

template <class T>
std::shared_ptr<T> handle_of(nb::handle layer, const char* name) {
  nb::object value = nb::getattr(layer, name);
  if (value.is_none()) return nullptr;
  std::shared_ptr<T> handle;
  if (!nb::try_cast(value, handle)) {
    throw std::invalid_argument(std::string("decoder layer: ") + name + " is not a handle of the native ops");
  }
  return handle;
}

template <class T>
std::shared_ptr<T> needed(nb::handle layer, const char* name) {
  auto handle = handle_of<T>(layer, name);
  if (handle == nullptr) throw std::invalid_argument(std::string("decoder layer: ") + name + " is missing");
  return handle;
}

std::shared_ptr<const Sampling> read_sampling(nb::handle params) {
  static const Name temperature("temperature"), top_k("top_k"), top_p("top_p"), min_p("min_p"),
      repetition("repetition_penalty"), presence("presence_penalty"), frequency("frequency_penalty"),
      bias("logit_bias");
  auto s = std::make_shared<Sampling>();
  s->temperature = as_double(temperature.of(params), "temperature");
  s->top_k = as_int(top_k.of(params), "top_k", 0, INT64_MAX);
  s->top_p = as_double(top_p.of(params), "top_p");
  s->min_p = as_double(min_p.of(params), "min_p");
  s->repetition_penalty = as_double(repetition.of(params), "repetition_penalty");
  s->presence_penalty = as_double(presence.of(params), "presence_penalty");
  s->frequency_penalty = as_double(frequency.of(params), "frequency_penalty");
  const nb::object biases = bias.of(params);
  if (nb::len(biases) > 0) {
    for (nb::handle item : biases.attr("items")()) {
      s->logit_bias.emplace_back(as_int(item[0], "a token of logit_bias", 0, INT32_MAX),
                                 as_double(item[1], "logit_bias"));
    }
  }
  return s;
}

}  // namespace

std::vector<int32_t> read_ints(nb::handle sequence, const char* what, int64_t least, int64_t most) {
  const nb::object items = nb::steal(PySequence_Fast(sequence.ptr(), "expected a sequence of integers"));
  if (!items.is_valid()) nb::raise_python_error();
  const Py_ssize_t count = PySequence_Fast_GET_SIZE(items.ptr());
  PyObject** item = PySequence_Fast_ITEMS(items.ptr());
  std::vector<int32_t> numbers(static_cast<size_t>(count));
  for (Py_ssize_t i = 0; i < count; ++i) numbers[i] = static_cast<int32_t>(as_int(item[i], what, least, most));
  return numbers;
}

SegmentSpec read_segment(nb::handle segment) {
  static const Name blocks("blocks"), start("start"), tokens("tokens"), parents("parents"), num_scored("num_scored"),
      kind("kind");
  SegmentSpec s;
  s.start = as_int(start.of(segment), "segment: start", 0, INT32_MAX);
  s.tokens = read_ints(tokens.of(segment), "segment: a token", INT32_MIN, INT32_MAX);
  s.parents = read_ints(parents.of(segment), "segment: a parent", -1, INT32_MAX);
  s.num_scored = as_int(num_scored.of(segment), "segment: num_scored", 0, INT32_MAX);
  s.blocks = read_ints(blocks.of(segment), "segment: a block", -1, INT32_MAX);
  const nb::object name = kind.of(segment);
  s.full = PyUnicode_Check(name.ptr()) && PyUnicode_CompareWithASCIIString(name.ptr(), "full") == 0;
  if (!s.full && !(PyUnicode_Check(name.ptr()) && PyUnicode_CompareWithASCIIString(name.ptr(), "tree") == 0)) {
    throw std::invalid_argument("segment: kind must be 'tree' or 'full', got " + nb::cast<std::string>(nb::repr(name)));
  }
  return s;
}

std::shared_ptr<const Layer> read_layer(nb::handle layer) {
  auto l = std::make_shared<Layer>();
  const auto number = [&](const char* name) { return as_int(nb::getattr(layer, name), name, 0, 1 << 24); };
  const nb::object window = nb::getattr(layer, "window");
  l->heads = {.layer = number("index"),
              .num_heads = number("num_heads"),
              .num_kv_heads = number("num_kv_heads"),
              .width = number("head_width"),
              .window = window.is_none() ? 0 : as_int(window, "window", 1, INT32_MAX)};
  l->eps = static_cast<float>(as_double(nb::getattr(layer, "eps"), "eps"));
  l->wq = needed<Matrix>(layer, "wq");
  l->wk = needed<Matrix>(layer, "wk");
  l->wv = needed<Matrix>(layer, "wv");
  l->wo = needed<Matrix>(layer, "wo");
  l->gate = needed<Matrix>(layer, "gate");
  l->up = needed<Matrix>(layer, "up");
  l->down = needed<Matrix>(layer, "down");
  l->attn_norm = needed<FloatVector>(layer, "attn_norm");
  l->mlp_norm = needed<FloatVector>(layer, "mlp_norm");
  l->bq = handle_of<FloatVector>(layer, "bq");
  l->bk = handle_of<FloatVector>(layer, "bk");
  l->bv = handle_of<FloatVector>(layer, "bv");
  l->q_norm = handle_of<FloatVector>(layer, "q_norm");
  l->k_norm = handle_of<FloatVector>(layer, "k_norm");
  l->rope = needed<Rope>(layer, "rope");
  check_heads(*l);
  return l;
}

ChoiceRows::ChoiceRows(nb::handle rows, int64_t vocabulary) {
  const nb::object items = nb::steal(PySequence_Fast(rows.ptr(), "expected a sequence of rows"));
  if (!items.is_valid()) nb::raise_python_error();
  const Py_ssize_t count = PySequence_Fast_GET_SIZE(items.ptr());
  for (Py_ssize_t i = 0; i < count; ++i) read(PySequence_Fast_ITEMS(items.ptr())[i], vocabulary);
}

void ChoiceRows::read(nb::handle row, int64_t vocabulary) {
  static const Name params("params"), seed("seed"), sample_index("sample_index"), position("position"),
      prompt("prompt"), output("output"), mask("mask"), stream("stream");
  ChoiceRow r;
  const nb::object sampling = params.of(row);
  r.sampling = sampling.is(params_) ? rows_.back().sampling : read_sampling(sampling);
  params_ = sampling;
  const nb::object packed = mask.of(row);
  if (!packed.is_none()) r.mask = read_mask(packed, vocabulary);
  if (!r.sampling->greedy()) {
    r.key = {.seed = as_seed(seed.of(row)),
             .position = static_cast<uint32_t>(as_int(position.of(row), "a row's position", 0, UINT32_MAX)),
             .sample_index = static_cast<uint32_t>(as_int(sample_index.of(row), "a row's sample_index", 0, UINT32_MAX)),
             .stream = static_cast<uint32_t>(as_int(stream.of(row), "a row's stream", 0, UINT32_MAX))};
  }
  if (r.sampling->penalises()) {
    const nb::object before = prompt.of(row);
    const bool same = before.is(prompt_) && !rows_.empty() && rows_.back().prompt != nullptr;
    r.prompt = same ? rows_.back().prompt
                    : std::make_shared<Tokens>(read_ints(before, "a token of the prompt", 0, vocabulary - 1));
    prompt_ = before;
    r.output = std::make_shared<Tokens>(read_ints(output.of(row), "a token of the output", 0, vocabulary - 1));
  }
  check_choice(r, vocabulary);
  rows_.push_back(std::move(r));
}

const uint32_t* ChoiceRows::read_mask(nb::object mask, int64_t vocabulary) {
  nb::ndarray<const uint32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu> words;
  const int64_t needed = (vocabulary + 31) / 32;
  if (!nb::try_cast(mask, words, false) || static_cast<int64_t>(words.shape(0)) != needed) {
    throw std::invalid_argument("a mask over " + std::to_string(vocabulary) + " tokens must be uint32 [" +
                                std::to_string(needed) + "] and contiguous");
  }
  kept_.push_back(mask);
  return words.data();
}

}  // namespace outpace
