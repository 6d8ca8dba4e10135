#include "from_python.h"

#include <nanobind/ndarray.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>

#include <cmath>
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

int64_t as_int(nb::handle value, const char* what, int64_t minimum, int64_t maximum) {
  int overflow = 0;
  const long long number = PyLong_AsLongLongAndOverflow(value.ptr(), &overflow);
  if (number == -1 && overflow == 0 && PyErr_Occurred()) {
    PyErr_Clear();
    throw std::invalid_argument(std::string(what) + " must be an integer, got " +
                                nb::cast<std::string>(nb::repr(value)));
  }
  if (overflow != 0 || number < minimum || number > maximum) {
    throw std::invalid_argument(std::string(what) + " must be in [" + std::to_string(minimum) + ", " +
                                std::to_string(maximum) + "], got " + nb::cast<std::string>(nb::repr(value)));
  }
  return number;
}

double as_double(nb::handle value, const char* what) {
  const double number = PyFloat_AsDouble(value.ptr());
  if (number == -1.0 && PyErr_Occurred()) {
    PyErr_Clear();
    throw std::invalid_argument(std::string(what) + " must be a number, got " + nb::cast<std::string>(nb::repr(value)));
  }
  return number;
}

const char* type_name(bool) { return "bool"; }
const char* type_name(float) { return "float32"; }
const char* type_name(double) { return "float64"; }
const char* type_name(int32_t) { return "int32"; }
const char* type_name(int64_t) { return "int64"; }
const char* type_name(uint32_t) { return "uint32"; }
const char* type_name(uint64_t) { return "uint64"; }

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

}  // namespace

std::vector<int32_t> read_ints(nb::handle sequence, const char* what, int64_t minimum, int64_t maximum) {
  const nb::object items = nb::steal(PySequence_Fast(sequence.ptr(), "expected a sequence of integers"));
  if (!items.is_valid()) nb::raise_python_error();
  const Py_ssize_t count = PySequence_Fast_GET_SIZE(items.ptr());
  PyObject** item = PySequence_Fast_ITEMS(items.ptr());
  std::vector<int32_t> numbers(static_cast<size_t>(count));
  for (Py_ssize_t i = 0; i < count; ++i) numbers[i] = static_cast<int32_t>(as_int(item[i], what, minimum, maximum));
  return numbers;
}

SegmentSpec read_segment(nb::handle segment) {
  static const Name blocks("blocks"), start("start"), tokens("tokens"), parents("parents"), num_scored("num_scored"),
      kind("kind"), stored("stored");
  SegmentSpec s;
  s.start = as_int(start.of(segment), "segment: start", 0, INT32_MAX);
  s.tokens = read_ints(tokens.of(segment), "segment: a token", INT32_MIN, INT32_MAX);
  s.parents = read_ints(parents.of(segment), "segment: a parent", -1, INT32_MAX);
  s.num_scored = as_int(num_scored.of(segment), "segment: num_scored", 0, INT32_MAX);
  s.stored = read_ints(stored.of(segment), "segment: a parent", -1, INT32_MAX);
  s.blocks = read_ints(blocks.of(segment), "segment: a block", -1, INT32_MAX);
  const nb::object name = kind.of(segment);
  s.full = PyUnicode_Check(name.ptr()) && PyUnicode_CompareWithASCIIString(name.ptr(), "full") == 0;
  if (!s.full && !(PyUnicode_Check(name.ptr()) && PyUnicode_CompareWithASCIIString(name.ptr(), "tree") == 0)) {
    throw std::invalid_argument("segment: kind must be 'tree' or 'full', got " + nb::cast<std::string>(nb::repr(name)));
  }
  return s;
}

Activation read_activation(nb::handle name) {
  if (PyUnicode_Check(name.ptr()) && PyUnicode_CompareWithASCIIString(name.ptr(), "silu") == 0) return Activation::Silu;
  if (PyUnicode_Check(name.ptr()) && PyUnicode_CompareWithASCIIString(name.ptr(), "gelu_tanh") == 0) {
    return Activation::GeluTanh;
  }
  if (PyUnicode_Check(name.ptr()) && PyUnicode_CompareWithASCIIString(name.ptr(), "clamped_swiglu") == 0) {
    return Activation::ClampedSwiglu;
  }
  throw std::invalid_argument("activation must be 'silu', 'gelu_tanh' or 'clamped_swiglu', got " + nb::cast<std::string>(nb::repr(name)));
}

template <class T>
static std::vector<std::shared_ptr<const T>> handles_of(nb::handle experts, const char* name) {
  std::vector<std::shared_ptr<const T>> handles;
  for (nb::handle item : nb::getattr(experts, name)) {
    std::shared_ptr<T> handle;
    if (!nb::try_cast(item, handle) || handle == nullptr) {
      throw std::invalid_argument(std::string("experts: ") + name + " must hold handles of the native ops");
    }
    handles.push_back(std::move(handle));
  }
  return handles;
}

static std::shared_ptr<const Experts> read_experts(nb::handle experts) {
  auto e = std::make_shared<Experts>();
  e->router = needed<Matrix>(experts, "router");
  e->router_bias = handle_of<FloatVector>(experts, "router_bias");
  e->gate = handles_of<Matrix>(experts, "gate");
  e->up = handles_of<Matrix>(experts, "up");
  e->down = handles_of<Matrix>(experts, "down");
  e->gate_bias = handles_of<FloatVector>(experts, "gate_bias");
  e->up_bias = handles_of<FloatVector>(experts, "up_bias");
  e->down_bias = handles_of<FloatVector>(experts, "down_bias");
  e->num_chosen = as_int(nb::getattr(experts, "num_chosen"), "num_chosen", 1, 1 << 20);
  e->is_normalised = nb::cast<bool>(nb::getattr(experts, "is_normalised"));
  check_experts(*e);
  return e;
}

// Of powers of two, so that nothing is rounded: what it returns divides as exactly as they multiply.
std::shared_ptr<const FloatVector> reciprocals(const FloatVector& factors) {
  std::vector<float> result(factors.data(), factors.data() + factors.size());
  for (float& factor : result) {
    int exponent;
    if (!(factor > 0) || std::frexp(factor, &exponent) != 0.5f) {
      throw std::invalid_argument("key_scale must be powers of two, has " + std::to_string(factor));
    }
    factor = 1.0f / factor;
  }
  return std::make_shared<const FloatVector>(result.data(), result.data() + result.size());
}

std::shared_ptr<const Layer> read_layer(nb::handle layer) {
  auto l = std::make_shared<Layer>();
  const auto number = [&](const char* name) { return as_int(nb::getattr(layer, name), name, 0, 1 << 24); };
  const nb::object window = nb::getattr(layer, "window");
  l->heads = {.layer = number("index"),
              .num_heads = number("num_heads"),
              .num_kv_heads = number("num_kv_heads"),
              .width = number("head_width"),
              .window = window.is_none() ? 0 : as_int(window, "window", 1, INT32_MAX),
              .first = number("first"),
              .scale = 0};
  const nb::object scale = nb::getattr(layer, "scale");
  l->heads.scale = static_cast<float>(scale.is_none() ? 1.0 / std::sqrt(static_cast<double>(l->heads.width))
                                                      : as_double(scale, "scale"));
  l->activation = read_activation(nb::getattr(layer, "activation"));
  l->eps = static_cast<float>(as_double(nb::getattr(layer, "eps"), "eps"));
  l->wq = needed<Matrix>(layer, "wq");
  l->wk = needed<Matrix>(layer, "wk");
  l->wv = needed<Matrix>(layer, "wv");
  l->wo = needed<Matrix>(layer, "wo");
  const nb::object experts = nb::getattr(layer, "experts");
  if (experts.is_none()) {
    l->gate = needed<Matrix>(layer, "gate");
    l->up = needed<Matrix>(layer, "up");
    l->down = needed<Matrix>(layer, "down");
  } else {
    l->experts = read_experts(experts);
  }
  l->attn_norm = handle_of<FloatVector>(layer, "attn_norm");
  l->mlp_norm = handle_of<FloatVector>(layer, "mlp_norm");
  l->bq = handle_of<FloatVector>(layer, "bq");
  l->bk = handle_of<FloatVector>(layer, "bk");
  l->bv = handle_of<FloatVector>(layer, "bv");
  l->bo = handle_of<FloatVector>(layer, "bo");
  l->sinks = handle_of<FloatVector>(layer, "sinks");
  if (l->sinks != nullptr) l->heads.sinks = l->sinks->data();
  l->q_norm = handle_of<FloatVector>(layer, "q_norm");
  l->k_norm = handle_of<FloatVector>(layer, "k_norm");
  l->key_scale = handle_of<FloatVector>(layer, "key_scale");
  if (l->key_scale != nullptr) l->key_shrink = reciprocals(*l->key_scale);
  l->rope = needed<Rope>(layer, "rope");
  if (const nb::object growth = nb::getattr(layer, "query_growth"); !growth.is_none()) {
    l->growth_rate = nb::cast<double>(nb::getattr(growth, "rate"));
    l->growth_length = nb::cast<int64_t>(nb::getattr(growth, "length"));
  }
  check_heads(*l);
  return l;
}

std::shared_ptr<const Guesser> read_guesser(nb::handle layer, const HeadRows& head) {
  auto g = std::make_shared<Guesser>();
  g->layer = *read_layer(nb::getattr(layer, "layer"));
  g->embedding = needed<Matrix>(layer, "embedding");
  g->feature_norm = needed<FloatVector>(layer, "feature_norm");
  g->head_norm = needed<FloatVector>(layer, "head_norm");
  g->head = head;
  g->bo = handle_of<FloatVector>(layer, "bo");
  g->output_is_normed = nb::cast<bool>(nb::getattr(layer, "output_is_normed"));
  g->residual_is_normed = nb::cast<bool>(nb::getattr(layer, "residual_is_normed"));
  check_guesser(*g);
  return g;
}

PythonBatch::PythonBatch(int64_t num_rows, nb::handle params, nb::handle seeds, nb::handle sample_indices,
                         nb::handle positions, nb::handle streams, nb::handle prompts, nb::handle outputs,
                         nb::handle masks, nb::handle has_mask, nb::handle bias_tokens, nb::handle biases) {
  SamplingBatch& b = batch_;
  b.num_rows = num_rows;
  if (num_rows < 0) throw std::invalid_argument("a sampling batch's num_rows must be at minimum 0");
  if (params.is_none()) return;
  b.params = read<double>(params, "params", {num_rows, static_cast<int64_t>(std::size(kSamplingParams))});
  b.seeds = read<uint64_t>(seeds, "seeds", {num_rows});
  b.sample_indices = read<uint32_t>(sample_indices, "sample_indices", {num_rows});
  b.positions = read<uint32_t>(positions, "positions", {num_rows});
  b.streams = read<uint32_t>(streams, "streams", {num_rows});
  if (!prompts.is_none()) {
    b.prompts = read_ragged<int32_t>(prompts, "prompts");
    b.outputs = read_ragged<int32_t>(outputs, "outputs");
  }
  if (!masks.is_none()) {
    b.masks = read<uint32_t>(masks, "masks", {num_rows, -1});
    b.mask_words = nb::cast<int64_t>(nb::getattr(masks, "shape")[1]);
    b.has_mask = read<bool>(has_mask, "has_mask", {num_rows});
  }
  if (!bias_tokens.is_none()) {
    b.bias_tokens = read_ragged<int32_t>(bias_tokens, "bias_tokens");
    b.biases = read_ragged<float>(biases, "biases");
    for (int64_t r = 0; r < num_rows; ++r) {
      if (b.bias_tokens[r].size() == b.biases[r].size()) continue;
      throw std::invalid_argument("a sampling batch's bias_tokens and biases must be equally long in every row");
    }
  }
}

// Returns the numbers of a contiguous array of T; a size of -1 may be any.
template <class T>
const T* PythonBatch::read(nb::handle array, const char* name, std::initializer_list<int64_t> shape) {
  nb::ndarray<const T, nb::c_contig, nb::device::cpu> numbers;
  bool fits = nb::try_cast(array, numbers, false) && numbers.ndim() == shape.size();
  std::string wanted;
  size_t axis = 0;
  for (const int64_t size : shape) {
    wanted += (axis == 0 ? "" : ", ") + (size < 0 ? "any" : std::to_string(size));
    fits = fits && (size < 0 || static_cast<int64_t>(numbers.shape(axis)) == size);
    ++axis;
  }
  if (!fits) {
    throw std::invalid_argument(std::string("a sampling batch's ") + name + " must be a contiguous array of " +
                                type_name(T{}) + " [" + wanted + "]");
  }
  kept_.push_back(nb::borrow(array));
  return numbers.data();
}

template <class T>
Ragged<T> PythonBatch::read_ragged(nb::handle ragged, const char* name) {
  static const Name values_name("values"), bounds_name("bounds");
  if (ragged.is_none()) throw std::invalid_argument(std::string("a sampling batch's ") + name + " are missing");
  const nb::object values = values_name.of(ragged), bounds = bounds_name.of(ragged);
  const Ragged<T> lists{read<T>(values, name, {-1}), read<int64_t>(bounds, name, {batch_.num_rows, 2})};
  const auto size = static_cast<int64_t>(nb::len(values));
  for (int64_t r = 0; r < batch_.num_rows; ++r) {
    const int64_t begin = lists.bounds[2 * r], end = lists.bounds[2 * r + 1];
    if (0 <= begin && begin <= end && end <= size) continue;
    throw std::invalid_argument(std::string("a sampling batch's ") + name + " have bounds outside their values");
  }
  return lists;
}

}  // namespace outpace
