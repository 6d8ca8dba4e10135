// The Python module `_native`: checks what comes from Python, releases the GIL, computes.
//
// Every function makes its result and borrows its workspace under the GIL, which guards the stores of both.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <exception>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "array.h"
#include "from_python.h"
#include "matmul/isa.h"
#include "matmul/matmul.h"
#include "matmul/rounding.h"
#include "mapped_file.h"
#include "network.h"
#include "packing.h"
#include "sample.h"
#include "strings.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace outpace {
namespace {

void check(bool fits, const std::string& what) {
  if (!fits) throw std::invalid_argument(what);
}

std::string shape_of(const Array& x) {
  return std::string("[").append(std::to_string(x.rows())).append(", ").append(std::to_string(x.cols())).append("]");
}

void check_rows(const Array& x, const Plan& plan, int64_t cols, const char* what) {
  check(x.rows() == plan.num_rows() && x.cols() == cols, std::string(what) + " must be [" +
                                                             std::to_string(plan.num_rows()) + ", " +
                                                             std::to_string(cols) + "], got " + shape_of(x));
}

// Takes the GIL back. Where the interpreter is shutting down, Python before 3.14 ends a (daemon) thread that asks for
// the GIL by pthread_exit, which glibc carries out by unwinding the stack; the first noexcept function on the way would
// abort the process. So such a thread stops here, as it does since 3.14, until the process is gone.
void take_gil(PyThreadState* state) {
  try {
    PyEval_RestoreThread(state);
  } catch (...) {
    for (;;) pause();
  }
}

using Bytes = nb::ndarray<const uint8_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

constexpr int64_t kTileAlignment = 64;

// The bytes that are being packed meanwhile: guarded by the GIL, and none where nothing is to be waited for.
struct BytesInUse {
  std::vector<Bytes> arrays;
  int64_t copied = 0;  // bytes that lie in no mapped file

  static BytesInUse& get() {
    static auto* const bytes = new BytesInUse;  // never destroyed: Python may be gone by then
    return *bytes;
  }
};
constexpr int64_t kMaximumCopied = int64_t{32} << 20;

// Waits for what was begun to be packed, without the GIL.
void finish_packing() {
  if (BytesInUse::get().arrays.empty()) return;
  PyThreadState* state = PyEval_SaveThread();
  Packing::get().finish();
  take_gil(state);
  if (!Packing::get().is_finished()) return;  // another thread has begun more
  const BytesInUse let_go = std::exchange(BytesInUse::get(), {});
}

// Workspaces wait here between calls. Two Python threads that compute at the same time get one each.
class Workspaces {
 public:
  std::unique_ptr<Workspace> take() {
    if (free_.empty()) return std::make_unique<Workspace>();
    auto workspace = std::move(free_.back());
    free_.pop_back();
    return workspace;
  }
  void give(std::unique_ptr<Workspace> workspace) { free_.push_back(std::move(workspace)); }

 private:
  std::vector<std::unique_ptr<Workspace>> free_;
};

// What the kernels of one NativeOps need: its number of threads and its workspaces.
class Context {
 public:
  explicit Context(int threads) : threads_(threads) {
    check(threads >= 1 && threads <= 1024, "threads must be in [1, 1024], got " + std::to_string(threads));
    const int started = 1 + Pool::get().start(threads - 1);
    check(started >= threads, std::to_string(threads) + " threads cannot be started here, only " +
                                  std::to_string(started) +
                                  ": give fewer threads, or raise the limit of processes (ulimit -u)");
  }

  Context(const Context&) = delete;
  Context& operator=(const Context&) = delete;

  int threads() const { return threads_; }

  // Calls body(threads, workspace) without the GIL, when all matrices are packed.
  template <class Body>
  void compute(Body body) {
    finish_packing();
    run(body);
  }

  // The same for a body that reads no matrix.
  template <class Body>
  void run(Body body) {
    auto workspace = workspaces_.take();
    std::exception_ptr error;
    PyThreadState* state = PyEval_SaveThread();
    try {
      body(threads_, *workspace);
    } catch (...) {
      error = std::current_exception();
    }
    take_gil(state);
    workspaces_.give(std::move(workspace));
    if (error != nullptr) std::rethrow_exception(error);
  }

 private:
  int threads_;
  Workspaces workspaces_;
};

// -- memory
// ------------------------------------------------------------------------------------------------------------

using Floats = nb::ndarray<const float, nb::c_contig, nb::device::cpu>;

// stays: nobody writes to `raw`, so that it can be packed meanwhile. mapped: it lies in a file that is mapped read-only,
// whose pages are let go then.
std::shared_ptr<Matrix> pack(Context& context, const Bytes& raw, const std::string& format_name, int64_t out,
                             int64_t in, bool stays, bool mapped) {
  const Format format = format_from_name(format_name);
  auto matrix = std::make_shared<Matrix>(make_matrix(format, out, in));
  check(static_cast<int64_t>(raw.shape(0)) == out && static_cast<int64_t>(raw.shape(1)) == row_bytes(format, in),
        "the bytes must be [" + std::to_string(out) + ", " + std::to_string(row_bytes(format, in)) + "], got [" +
            std::to_string(raw.shape(0)) + ", " + std::to_string(raw.shape(1)) + "]");
  check(stays || !mapped, "what is mapped read-only stays");
  const uint8_t* bytes = raw.data();
  if (stays) {
    BytesInUse& in_use = BytesInUse::get();
    if (!mapped && in_use.copied > kMaximumCopied) finish_packing();
    if (!mapped) in_use.copied += static_cast<int64_t>(raw.nbytes());
    in_use.arrays.push_back(raw);
    Packing::get().begin(matrix, bytes, mapped, context.threads());
    return matrix;
  }
  context.run([&](int threads, Workspace&) {
    Pool::get().run(threads, [&](const Member& m) {
      const auto [begin, end] = m.share(matrix->num_tiles());
      pack_tiles(*matrix, bytes, begin, end);
    });
  });
  return matrix;
}

// A matrix whose tiles lie in a file, from `offset` on, as they were packed before.
std::shared_ptr<Matrix> packed_before(const MappedFile& file, int64_t offset, const std::string& format, int64_t out,
                                      int64_t in) {
  auto matrix = std::make_shared<Matrix>(matrix_without_data(format_from_name(format), out, in));
  const int64_t bytes = matrix->num_tiles() * matrix->tile_bytes, size = static_cast<int64_t>(file.size());
  check(offset >= 0 && offset % kTileAlignment == 0 && offset <= size && bytes <= size - offset,
        "a packed matrix of " + std::to_string(bytes) + " bytes cannot begin at " + std::to_string(offset) +
            " of a file of " + std::to_string(size));
  matrix->data = AlignedBuffer::view(file.mapping(), file.data() + offset, static_cast<size_t>(bytes));
  return matrix;
}

// The tiles of a matrix, not copied.
nb::ndarray<nb::numpy, const uint8_t, nb::ndim<1>> tiles_in_place(nb::handle_t<Matrix> weight) {
  finish_packing();
  const auto& matrix = *nb::inst_ptr<Matrix>(weight);
  const size_t shape[1] = {static_cast<size_t>(matrix.num_tiles() * matrix.tile_bytes)};
  return {matrix.data.data(), 1, shape, weight};
}

std::shared_ptr<FloatVector> vector(const Floats& values) {
  check(values.ndim() == 1 && values.size() >= 1, "a vector must have one dimension and at least one number");
  return std::make_shared<FloatVector>(values.data(), values.data() + values.size());
}

std::shared_ptr<Rope> rope(const std::vector<double>& inv_freq, double scale, int64_t context) {
  check(!inv_freq.empty(), "a rotary table needs at least one frequency");
  check(context >= 1 && context <= INT32_MAX, "a rotary table's context must be in [1, 2^31)");
  return std::make_shared<Rope>(inv_freq, scale, context);
}

std::shared_ptr<KvStore> kv_alloc(int64_t layers, int64_t heads, int64_t width, const std::string& format,
                                  int64_t block_size, int64_t scale_group, int64_t num_blocks) {
  check(format == "f32" || format == "bf16" || format == "int8",
        "a KV format is 'f32', 'bf16' or 'int8', got '" + format + "'");
  const KvFormat f = format == "f32" ? KvFormat::F32 : format == "bf16" ? KvFormat::BF16 : KvFormat::Int8;
  check(num_blocks >= 0 && num_blocks <= INT32_MAX, "the number of blocks must be in [0, 2^31)");
  return std::make_shared<KvStore>(make_kv_layout(f, layers, heads, width, block_size, scale_group), num_blocks);
}

void kv_move(Context& context, KvStore& kv, nb::handle sources, nb::handle targets) {
  const int64_t slots = kv.num_blocks() * kv.layout().block_size;
  const auto from = read_ints(sources, "a source slot", 0, std::min<int64_t>(slots, INT32_MAX) - 1);
  const auto to = read_ints(targets, "a target slot", 0, std::min<int64_t>(slots, INT32_MAX) - 1);
  check(from.size() == to.size(),
        std::to_string(from.size()) + " sources, but " + std::to_string(to.size()) + " targets");
  context.compute([&](int threads, Workspace&) {
    Pool::get().run(from.empty() ? 1 : threads, [&](const Member& m) {
      const auto [begin, end] = m.share(kv.layout().num_layers);
      for (size_t i = 0; i < from.size(); ++i) kv.move(from[i], to[i], begin, end);
    });
  });
}

std::shared_ptr<Plan> plan(nb::handle segments, int64_t block_size) {
  check(block_size >= 1 && block_size <= (1 << 20),
        "block_size must be in [1, 2^20], got " + std::to_string(block_size));
  auto result = std::make_shared<Plan>();
  result->block_size = block_size;
  for (nb::handle segment : segments) add_segment(*result, read_segment(segment));
  return result;
}

using ByteLine = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

nb::object strings(const ByteLine& bytes, int64_t start, int64_t end, int64_t count) {
  check(0 <= start && start <= end && end <= static_cast<int64_t>(bytes.shape(0)) && count >= 0 && count <= end - start,
        "strings must lie in the bytes, and be no more than these");
  return read_strings(bytes.data(), start, end, count);
}

// -- network
// -----------------------------------------------------------------------------------------------------------

Array array(const Floats& values) {
  check(values.ndim() == 2, "an array must have two dimensions, got " + std::to_string(values.ndim()));
  Array x(static_cast<int64_t>(values.shape(0)), static_cast<int64_t>(values.shape(1)));
  if (x.size() > 0) std::memcpy(x.data(), values.data(), static_cast<size_t>(x.size()) * sizeof(float));
  return x;
}

template <class T, size_t dims>
nb::ndarray<nb::numpy, T> numpy_array(std::unique_ptr<T[]> values, const size_t (&shape)[dims]) {
  T* data = values.release();
  return nb::ndarray<nb::numpy, T>(data, dims, shape,
                                   nb::capsule(data, [](void* p) noexcept { delete[] static_cast<T*>(p); }));
}

nb::ndarray<nb::numpy, float> numpy(const Array& x) {
  auto values = std::make_unique_for_overwrite<float[]>(static_cast<size_t>(x.size()));
  std::copy_n(x.data(), x.size(), values.get());
  return numpy_array<float>(std::move(values), {static_cast<size_t>(x.rows()), static_cast<size_t>(x.cols())});
}

nb::ndarray<nb::numpy, uint8_t> round_op(Context& context, const Floats& x, const std::string& format) {
  const Format to = format_from_name(format);
  check(can_round(to), "numbers are not rounded to " + format);
  check(x.ndim() == 2, "what is rounded must be a matrix");
  const auto rows = static_cast<int64_t>(x.shape(0)), in = static_cast<int64_t>(x.shape(1));
  check(in % block_width(to) == 0,
        "rows of " + std::to_string(in) + " numbers are no multiple of " + std::to_string(block_width(to)));
  const int64_t bytes = row_bytes(to, in);
  auto rounded = std::make_unique<uint8_t[]>(static_cast<size_t>(rows * bytes));
  const float* numbers = x.data();
  uint8_t* to_bytes = rounded.get();
  context.run([&](int threads, Workspace&) {
    Pool::get().run(threads, [&](const Member& m) {
      const auto [begin, end] = m.share(rows);
      for (int64_t r = begin; r < end; ++r) round_row(to, numbers + r * in, in, to_bytes + r * bytes);
    });
  });
  const size_t shape[2] = {static_cast<size_t>(rows), static_cast<size_t>(bytes)};
  return numpy_array<uint8_t>(std::move(rounded), shape);
}

Array embed(Context& context, const Matrix& weight, const Plan& plan) {
  check(plan.smallest_token >= 0 && plan.largest_token < weight.out,
        "token id " + std::to_string(plan.smallest_token < 0 ? plan.smallest_token : plan.largest_token) +
            " is outside the model's vocabulary: allowed are [0, " + std::to_string(weight.out) + ")");
  Array y(plan.num_rows(), weight.in);
  context.compute([&](int threads, Workspace&) { embed_rows(threads, weight, plan, y.data()); });
  return y;
}

Array add(const Array& a, const Array& b) {
  check(a.rows() == b.rows() && a.cols() == b.cols(),
        "arrays of " + shape_of(a) + " and " + shape_of(b) + " cannot be added");
  Array y(a.rows(), a.cols());
  add_rows(a.data(), b.data(), y.data(), a.size());
  return y;
}

Array silu(const Array& x) {
  Array y(x.rows(), x.cols());
  silu_rows(x.data(), y.data(), x.size());
  return y;
}

Array scale_op(Context& context, const Array& x, double factor) {
  Array y(x.rows(), x.cols());
  context.compute([&](int threads, Workspace&) {
    scale_rows(threads, x.data(), static_cast<float>(factor), y.data(), x.size());
  });
  return y;
}

Array soft_cap_op(Context& context, const Array& x, double cap) {
  Array y(x.rows(), x.cols());
  context.compute([&](int threads, Workspace&) {
    soft_cap_rows(threads, x.data(), static_cast<float>(cap), y.data(), x.size());
  });
  return y;
}

Array gate_op(Context& context, const Array& gate, const Array& up, nb::handle activation) {
  check(gate.rows() == up.rows() && gate.cols() == up.cols(),
        "arrays of " + shape_of(gate) + " and " + shape_of(up) + " are no gate and what it lets through");
  const Activation kind = read_activation(activation);
  Array y(up.rows(), up.cols());
  context.compute([&](int threads, Workspace&) {
    gate_rows(threads, kind, gate.data(), up.data(), y.data(), y.size());
  });
  return y;
}

Array rms_norm(Context& context, const Array& x, const FloatVector& weight, double eps) {
  check(x.cols() == weight.size(),
        "a norm of " + std::to_string(weight.size()) + " numbers does not fit x, which is " + shape_of(x));
  Array y(x.rows(), x.cols());
  context.compute([&](int threads, Workspace&) {
    norm_rows(threads, x.data(), weight, static_cast<float>(eps), y.data(), x.rows());
  });
  return y;
}

Array concat(const std::vector<const Array*>& parts) {
  check(!parts.empty(), "concat needs at least one array");
  int64_t cols = 0;
  for (const Array* part : parts) {
    check(part != nullptr, "concat takes arrays, got None");
    check(part->rows() == parts[0]->rows(),
          "arrays of " + shape_of(*parts[0]) + " and " + shape_of(*part) + " do not fit side by side");
    cols += part->cols();
  }
  Array y(parts[0]->rows(), cols);
  int64_t at = 0;
  for (const Array* part : parts) {
    for (int64_t r = 0; r < y.rows(); ++r) std::copy_n(part->row(r), part->cols(), y.row(r) + at);
    at += part->cols();
  }
  return y;
}

Array stack(const std::vector<const Array*>& parts) {
  check(!parts.empty(), "stack needs at least one array");
  int64_t rows = 0;
  for (const Array* part : parts) {
    check(part != nullptr, "stack takes arrays, got None");
    check(part->cols() == parts[0]->cols(),
          "arrays of " + shape_of(*parts[0]) + " and " + shape_of(*part) + " do not fit one below another");
    rows += part->rows();
  }
  Array y(rows, parts[0]->cols());
  int64_t at = 0;
  for (const Array* part : parts) {
    std::copy_n(part->data(), part->size(), y.row(at));
    at += part->rows();
  }
  return y;
}

Array linear_op(Context& context, const Array& x, const Matrix& weight, const FloatVector* bias) {
  check(x.cols() == weight.in, "a matrix of " + std::to_string(weight.out) + " x " + std::to_string(weight.in) +
                                   " does not fit x, which is " + shape_of(x));
  check(bias == nullptr || bias->size() == weight.out, "the bias must be as long as the matrix has rows");
  Array y(x.rows(), weight.out);
  if (x.rows() == 0) return y;
  context.compute([&](int threads, Workspace& w) { linear(threads, w, x.data(), x.rows(), weight, bias, y.data()); });
  return y;
}

Array rope_store_op(Context& context, const Array& q, const Array& k, const Array& v, const Layer& layer, KvStore& kv,
                    const Plan& plan) {
  const HeadShape& h = layer.heads;
  check_plan(layer, kv, plan);
  check_rows(q, plan, h.num_heads * h.width, "q");
  check_rows(k, plan, h.num_kv_heads * h.width, "k");
  check_rows(v, plan, h.num_kv_heads * h.width, "v");
  Array rotated(q.rows(), q.cols()), keys(k.rows(), k.cols());
  std::copy_n(q.data(), q.size(), rotated.data());
  std::copy_n(k.data(), k.size(), keys.data());
  context.compute(
      [&](int threads, Workspace&) { rope_store(threads, rotated.data(), keys.data(), v.data(), layer, kv, plan); });
  return rotated;
}

Array attend_op(Context& context, const Array& q, const Layer& layer, const KvStore& kv, const Plan& plan) {
  check_plan(layer, kv, plan);
  check_rows(q, plan, layer.heads.num_heads * layer.heads.width, "q");
  Array y(q.rows(), q.cols());
  if (q.rows() == 0) return y;
  context.compute([&](int threads, Workspace& w) { attend(threads, w, q.data(), layer, kv, plan, y.data()); });
  return y;
}

Array gated_mlp_op(Context& context, const Array& x, const Layer& layer) {
  check_mlp(layer);
  check(x.cols() == layer.width(),
        "x must be as wide as the layer, " + std::to_string(layer.width()) + ", got " + shape_of(x));
  Array y(x.rows(), x.cols());
  if (x.rows() == 0) return y;
  context.compute([&](int threads, Workspace& w) { gated_mlp(threads, w, x.data(), x.rows(), layer, y.data()); });
  return y;
}

Array experts_op(Context& context, const Array& x, const Layer& layer) {
  check_experts(layer);
  check(x.cols() == layer.width(),
        "x must be as wide as the layer, " + std::to_string(layer.width()) + ", got " + shape_of(x));
  Array y(x.rows(), x.cols());
  if (x.rows() == 0) return y;
  context.compute([&](int threads, Workspace& w) { experts(threads, w, x.data(), x.rows(), layer, y.data()); });
  return y;
}

// Layers one after another, without Python between them.
Array decoder_layers_op(Context& context, const Array& x, const std::vector<const Layer*>& layers, KvStore& kv,
                        const Plan& plan) {
  check(!layers.empty(), "decoder_layers needs at least one layer");
  for (const Layer* layer : layers) {
    check(layer != nullptr, "decoder_layers takes layers, got None");
    check_layer(*layer);
    check_plan(*layer, kv, plan);
    check_rows(x, plan, layer->width(), "x");
  }
  Array y(x.rows(), x.cols()), between(layers.size() > 1 ? x.rows() : 0, x.cols());
  if (x.rows() == 0) return y;
  context.compute([&](int threads, Workspace& w) {
    const float* from = x.data();
    for (size_t left = layers.size(); left > 0; --left) {
      float* to = left % 2 == 1 ? y.data() : between.data();
      decoder_layer(threads, w, from, *layers[layers.size() - left], kv, plan, to);
      from = to;
    }
  });
  return y;
}

Array logits_op(Context& context, const Array& x, const FloatVector& norm, double eps, const Matrix& weight,
                const Plan& plan) {
  check_rows(x, plan, weight.in, "x");
  check(norm.size() == weight.in, "the norm must be as long as the output matrix is wide");
  Array y(static_cast<int64_t>(plan.scored.size()), weight.out);
  if (y.rows() == 0) return y;
  context.compute([&](int threads, Workspace& w) {
    logits(threads, w, x.data(), norm, static_cast<float>(eps), weight, plan, y.data());
  });
  return y;
}

// Rows of k numbers as lists of Python's: there are few of them, and Python reads them one by one.
template <class T, class Make>
nb::object lists(const std::vector<T>& values, size_t rows, size_t k, Make make) {
  nb::object result = nb::steal(PyList_New(static_cast<Py_ssize_t>(rows)));
  for (size_t r = 0; r < rows; ++r) {
    PyObject* row = PyList_New(static_cast<Py_ssize_t>(k));
    for (size_t i = 0; i < k; ++i) PyList_SET_ITEM(row, static_cast<Py_ssize_t>(i), make(values[r * k + i]));
    PyList_SET_ITEM(result.ptr(), static_cast<Py_ssize_t>(r), row);
  }
  return result;
}

// Room for the best tokens of some rows, and what Python gets of it.
struct BestRows {
  size_t rows, k;
  std::vector<int64_t> tokens;
  std::vector<float> logprobs, scores;

  BestRows(size_t num_rows, int64_t num_best)
      : rows(num_rows), k(static_cast<size_t>(num_best)), tokens(rows * k), logprobs(rows * k), scores(rows * k) {}
  Best of(int64_t row) {
    const size_t at = static_cast<size_t>(row) * k;
    return {tokens.data() + at, logprobs.data() + at, scores.data() + at};
  }
  nb::object token_lists() const { return lists(tokens, rows, k, PyLong_FromLongLong); }
  nb::object logprob_lists() const { return lists(logprobs, rows, k, PyFloat_FromDouble); }
  nb::object score_lists() const { return lists(scores, rows, k, PyFloat_FromDouble); }
};

std::shared_ptr<HeadRows> head_rows(std::shared_ptr<const Matrix> matrix, nb::handle tokens) {
  auto rows = std::make_shared<HeadRows>();
  rows->tokens = read_ints(tokens, "a token", 0, INT32_MAX);
  check(static_cast<int64_t>(rows->tokens.size()) == matrix->out, "give a token for each of the " +
                                                                      std::to_string(matrix->out) + " rows, got " +
                                                                      std::to_string(rows->tokens.size()));
  rows->largest_token = *std::max_element(rows->tokens.begin(), rows->tokens.end());
  rows->matrix = std::move(matrix);
  return rows;
}

std::shared_ptr<Fusion> fusion(std::shared_ptr<const Matrix> fc, std::vector<std::shared_ptr<FloatVector>> norms,
                               std::shared_ptr<FloatVector> joint_norm, double eps, bool adds_last) {
  auto result = std::make_shared<Fusion>();
  result->norms.assign(norms.begin(), norms.end());
  for (const auto& norm : norms) {
    check(norm->size() * static_cast<int64_t>(norms.size()) == fc->in, "the taps' norms must be as long as fc is wide");
  }
  check(joint_norm == nullptr || (joint_norm->size() == fc->in && norms.empty()),
        "a joint norm must be as long as fc is wide, and no tap may have one of its own");
  result->fc = std::move(fc);
  result->joint_norm = std::move(joint_norm);
  result->eps = static_cast<float>(eps);
  result->adds_last = adds_last;
  return result;
}

// parts: (arrays of the taps, rows of them) each.
Array fuse_op(Context& context, const Fusion& fusion, nb::handle parts) {
  std::vector<TapRow> rows;
  int64_t width = 0;
  for (nb::handle part : parts) {
    const auto [taps, picked] = nb::cast<std::pair<std::vector<const Array*>, nb::object>>(part);
    check(!taps.empty() && taps[0] != nullptr, "fuse takes an array for each tap");
    const int64_t cols = taps[0]->cols(), num_taps = static_cast<int64_t>(taps.size());
    for (const Array* tap : taps) {
      check(tap != nullptr && tap->rows() == taps[0]->rows() && tap->cols() == cols && (width == 0 || cols == width) &&
                cols * num_taps == fusion.fc->in,
            "the taps must have one shape, and be as wide together as fc, " + std::to_string(fusion.fc->in));
    }
    width = cols;
    check(fusion.norms.empty() || fusion.norms.size() == taps.size(), "each tap must have a norm, or none");
    for (const int32_t r : read_ints(picked, "a row", 0, std::min<int64_t>(taps[0]->rows(), INT32_MAX) - 1)) {
      TapRow& row = rows.emplace_back();
      for (const Array* tap : taps) row.push_back(tap->row(r));
    }
  }
  check(!rows.empty(), "fuse needs at least one row");
  check(!fusion.adds_last || width == fusion.fc->out, "the last tap can only be added to features of its width");
  Array y(static_cast<int64_t>(rows.size()), fusion.fc->out);
  context.compute([&](int threads, Workspace& w) { fuse(threads, w, fusion, rows, width, y.data()); });
  return y;
}

nb::tuple guess_op(Context& context, const Array& features, const Guesser& guesser, KvStore& kv, const Plan& plan,
                   const std::vector<const HeadRows*>& further, const PythonBatch& given, int64_t k) {
  check_plan(guesser.layer, kv, plan);
  check_rows(features, plan, guesser.layer.width(), "features");
  check(plan.smallest_token >= 0 && plan.largest_token < guesser.embedding->out,
        "token id " + std::to_string(plan.smallest_token < 0 ? plan.smallest_token : plan.largest_token) +
            " is outside the embedding: allowed are [0, " + std::to_string(guesser.embedding->out) + ")");
  check(further.size() == plan.segments.size(), "give further rows, or None, for each segment");
  for (const HeadRows* own : further) {
    check(own == nullptr ||
              (own->matrix->in == guesser.layer.width() && own->largest_token < guesser.embedding->out),
          "further rows must be as wide as the head's, and their tokens must have rows in the embedding");
  }
  const auto rows = plan.scored.size();
  check(given.batch().num_rows == static_cast<int64_t>(rows), "the sampling batch must have the plan's scored rows");
  const int64_t words = (guesser.embedding->out + 31) / 32;
  check(given.batch().masks == nullptr || given.batch().mask_words == words,
        "masks must have " + std::to_string(words) + " words a row");
  check(k >= 1 && k <= guesser.head.matrix->out, "the number of tokens a row must be in [1, rows of the head]");
  Array states(static_cast<int64_t>(rows), guesser.layer.width());
  BestRows best(rows, k);
  const GuessInput in{&guesser, features.data(), &kv, &plan, &further, &given.batch(), k};
  const GuessOutput out{states.data(), best.tokens.data(), best.logprobs.data(), best.scores.data()};
  context.compute([&](int threads, Workspace& w) { guess(threads, w, in, out); });
  return nb::make_tuple(std::move(states), best.token_lists(), best.logprob_lists(), best.score_lists());
}

Array scored_op(const Array& x, const Plan& plan) {
  check_rows(x, plan, x.cols(), "x");
  Array y(static_cast<int64_t>(plan.scored.size()), x.cols());
  for (size_t i = 0; i < plan.scored.size(); ++i) {
    std::copy_n(x.row(plan.scored[i]), x.cols(), y.row(static_cast<int64_t>(i)));
  }
  return y;
}

// -- sampling
// ----------------------------------------------------------------------------------------------------------

void check_k(int64_t k, int64_t vocabulary) {
  check(1 <= k && k <= vocabulary,
        "the number of tokens a row must be in [1, " + std::to_string(vocabulary) + "], got " + std::to_string(k));
}

void check_batch(const SamplingBatch& batch, const Array& logits) {
  check(batch.num_rows == logits.rows(),
        "a sampling batch of " + std::to_string(batch.num_rows) + " rows met logits of shape " + shape_of(logits));
  const int64_t words = (logits.cols() + 31) / 32;
  check(batch.masks == nullptr || batch.mask_words == words,
        "masks must be uint32 [" + std::to_string(batch.num_rows) + ", " + std::to_string(words) + "], got uint32 [" +
            std::to_string(batch.num_rows) + ", " + std::to_string(batch.mask_words) + "]");
}

nb::ndarray<nb::numpy, int64_t> sample_op(Context& context, const Array& logits, const PythonBatch& given, int64_t k) {
  const SamplingBatch& batch = given.batch();
  check_batch(batch, logits);
  check_k(k, logits.cols());
  auto tokens = std::make_unique_for_overwrite<int64_t[]>(static_cast<size_t>(logits.rows() * k));
  context.compute([&](int threads, Workspace& w) {
    sample(threads, w.samplers, logits.data(), logits.cols(), batch, k, tokens.get());
  });
  return numpy_array<int64_t>(std::move(tokens), {static_cast<size_t>(logits.rows()), static_cast<size_t>(k)});
}

using ColumnTokens = nb::ndarray<const int32_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

nb::tuple best_of_columns(Context& context, const Array& logits, const ColumnTokens& columns, int64_t vocabulary,
                          const PythonBatch& given, int64_t k) {
  const SamplingBatch& batch = given.batch();
  check(batch.num_rows == logits.rows(), "a sampling batch of " + std::to_string(batch.num_rows) +
                                             " rows met logits of shape " + shape_of(logits));
  check(static_cast<int64_t>(columns.shape(0)) == logits.rows() &&
            static_cast<int64_t>(columns.shape(1)) == logits.cols(),
        "columns must be int32 of the logits' shape, " + shape_of(logits));
  check_k(k, logits.cols());
  std::vector<Columns> rows;
  for (int64_t r = 0; r < logits.rows(); ++r) {
    const int32_t* begin = columns.data() + r * logits.cols();
    const int32_t* end = std::find(begin, begin + logits.cols(), -1);
    check(std::all_of(begin, end, [&](int32_t token) { return token >= 0 && token < vocabulary; }) &&
              std::all_of(end, begin + logits.cols(), [](int32_t token) { return token == -1; }),
          "a column's token must be in [0, " + std::to_string(vocabulary) + "), or -1 behind the last one");
    rows.push_back({Tokens(begin, end), {}, vocabulary});
  }
  BestRows best(static_cast<size_t>(logits.rows()), k);
  context.compute([&](int threads, Workspace& w) {
    if (static_cast<int>(w.samplers.size()) < threads) w.samplers.resize(threads);
    Pool::get().run(logits.rows() <= 1 ? 1 : threads, [&](const Member& m) {
      const auto [first, last] = m.share(logits.rows());
      for (int64_t r = first; r < last; ++r) {
        sample_columns(w.samplers[m.index], logits.row(r), rows[r], batch, r, k, best.of(r));
      }
    });
  });
  return nb::make_tuple(best.token_lists(), best.logprob_lists(), best.score_lists());
}

nb::ndarray<nb::numpy, double> probs_op(Context& context, const Array& logits, const PythonBatch& given) {
  const SamplingBatch& batch = given.batch();
  check_batch(batch, logits);
  auto p = std::make_unique_for_overwrite<double[]>(static_cast<size_t>(logits.size()));
  context.compute([&](int threads, Workspace& w) {
    probs(threads, w.samplers, logits.data(), logits.cols(), batch, p.get());
  });
  return numpy_array<double>(std::move(p), {static_cast<size_t>(logits.rows()), static_cast<size_t>(logits.cols())});
}

nb::ndarray<nb::numpy, float> logprobs_op(Context& context, const Array& logits, nb::handle tokens) {
  const std::vector<int32_t> given = read_ints(tokens, "a token", 0, logits.cols() - 1);
  check(static_cast<int64_t>(given.size()) == logits.rows(),
        std::to_string(given.size()) + " tokens for logits of shape " + shape_of(logits) + ": give one a row");
  auto values = std::make_unique_for_overwrite<float[]>(given.size());
  context.compute(
      [&](int threads, Workspace&) { logprobs(threads, logits.data(), logits.cols(), given, values.get()); });
  return numpy_array<float>(std::move(values), {given.size()});
}

nb::tuple top_k_op(Context& context, const Array& logits, int64_t k) {
  check_k(k, logits.cols());
  const auto rows = static_cast<size_t>(logits.rows());
  auto tokens = std::make_unique_for_overwrite<int64_t[]>(rows * k);
  auto values = std::make_unique_for_overwrite<float[]>(rows * k);
  context.compute([&](int threads, Workspace& w) {
    top_k(threads, w.samplers, logits.data(), logits.rows(), logits.cols(), k, tokens.get(), values.get());
  });
  return nb::make_tuple(numpy_array<int64_t>(std::move(tokens), {rows, static_cast<size_t>(k)}),
                        numpy_array<float>(std::move(values), {rows, static_cast<size_t>(k)}));
}

Array select_op(const Array& x, nb::handle rows) {
  const std::vector<int32_t> picked = read_ints(rows, "a row", 0, std::min<int64_t>(x.rows(), INT32_MAX) - 1);
  Array y(static_cast<int64_t>(picked.size()), x.cols());
  for (size_t i = 0; i < picked.size(); ++i) std::copy_n(x.row(picked[i]), x.cols(), y.row(static_cast<int64_t>(i)));
  return y;
}

// -- measuring
// ---------------------------------------------------------------------------------------------------------

// Gigabytes per second of each of `repeats` streaming reads of `num_bytes`, all threads together.
std::vector<double> read_bandwidth(Context& context, int64_t num_bytes, int64_t repeats) {
  check(num_bytes >= 4096 && num_bytes <= (int64_t{1} << 40), "num_bytes must be in [4096, 2^40]");
  check(repeats >= 1 && repeats <= 100000, "repeats must be in [1, 100000]");
  const int64_t lines = num_bytes / 64;
  std::vector<double> speeds;
  AlignedBuffer buffer(static_cast<size_t>(lines) * 64);
  std::memset(buffer.data(), 1, buffer.size());  // pages that nobody wrote would all be one page of zeros
  context.compute([&](int threads, Workspace&) {
    std::vector<uint64_t> digests(static_cast<size_t>(threads) * 8);
    Pool::get().run(threads, [](const Member&) {});  // wakes the workers
    for (int64_t i = 0; i < repeats; ++i) {
      const auto start = std::chrono::steady_clock::now();
      Pool::get().run(threads, [&](const Member& m) {
        const auto [begin, end] = m.share(lines);
        digests[static_cast<size_t>(m.index) * 8] =
            read_stream(buffer.data() + begin * 64, static_cast<size_t>(end - begin) * 64);
      });
      const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
      speeds.push_back(static_cast<double>(buffer.size()) / seconds.count() / 1e9);
    }
  });
  return speeds;
}

}  // namespace
}  // namespace outpace

NB_MODULE(_native, m) {
  using namespace outpace;
  // Nanobind takes every object that is alive when Python has ended for a mistake in reference counting. Here they are
  // what a daemon thread held in its frames, which Python never unwinds: the system takes the memory back. Tests switch
  // the warnings on, where no such thread is (tests/unit/ops/native/test_exit.py).
  nb::set_leak_warnings(false);
  m.def("warn_of_leaks", [](bool on) { nb::set_leak_warnings(on); }, "on"_a);
  nb::register_exception_translator([](const std::exception_ptr& error, void*) {
    const auto raise = [](const char* name, const nb::object& argument) {
      PyErr_SetObject(nb::module_::import_("outpace.errors").attr(name).ptr(), argument.ptr());
    };
    try {
      std::rethrow_exception(error);
    } catch (const std::invalid_argument& e) {
      raise("UsageError", nb::str(e.what()));
    } catch (const SamplingError& e) {
      nb::dict rows;
      for (const auto& [row, reason] : e.rows) rows[nb::int_(row)] = nb::str(reason.c_str());
      raise("SamplingError", rows);
    }
  });
  nb::class_<Matrix>(m, "Weight", "A packed matrix [out, in].")
      .def_prop_ro("shape", [](const Matrix& w) { return nb::make_tuple(w.out, w.in); })
      .def_prop_ro("num_bytes", [](const Matrix& w) { return w.num_tiles() * w.tile_bytes; })
      .def_prop_ro(
          "tiles",
          [](const Matrix& w) {
            finish_packing();
            return nb::bytes(w.data.data(), static_cast<size_t>(w.num_tiles() * w.tile_bytes));
          },
          "A copy of the packed bytes.")
      .def_prop_ro("format", [](const Matrix& w) { return std::string(format_name(w.format)); });
  nb::class_<MappedFile>(m, "PackedFile", "A file of packed matrices, mapped.")
      .def(nb::init<const std::string&>(), "path"_a)
      .def("matrix", packed_before, "offset"_a, "format"_a, "out"_a, "in_"_a);
  m.def("tiles_in_place", tiles_in_place, "weight"_a);
  nb::class_<FloatVector>(m, "Vector", "A float vector: a norm weight or a bias.");
  nb::class_<Rope>(m, "Rope", "A rotary table.");
  nb::class_<KvStore>(m, "KV", "Storage of a paged cache, all layers.");
  nb::class_<Plan>(m, "Plan", "A ragged batch, ready for the kernels.");
  nb::class_<Layer>(m, "Layer", "A decoder layer, checked.");
  nb::class_<Array>(m, "Array", "Rows of float32.")
      .def_prop_ro("shape", [](const Array& x) { return nb::make_tuple(x.rows(), x.cols()); });
  m.def("read_strings", strings, "bytes"_a.noconvert(), "start"_a, "end"_a, "count"_a);
  m.def("finish_packing", finish_packing);
  m.def("isa", [] { return std::string(isa_name(active_isa())); });
  m.def("has_bf16_dot", [] { return has_bf16_dot(); });
  m.def("vector", vector, "values"_a.noconvert());
  m.def("rope", rope, "inv_freq"_a, "scale"_a, "context"_a);
  m.def("kv_alloc", kv_alloc, "layers"_a, "heads"_a, "width"_a, "format"_a, "block_size"_a, "scale_group"_a,
        "num_blocks"_a);
  m.def("kv_grow", [](KvStore& kv, int64_t num_blocks) { kv.grow(num_blocks); }, "kv"_a, "num_blocks"_a);
  m.def("plan", plan, "segments"_a, "block_size"_a);
  m.def("layer", [](nb::handle layer) { return std::const_pointer_cast<Layer>(read_layer(layer)); }, "layer"_a);
  m.def("array", array, "values"_a.noconvert());
  m.def("numpy", numpy, "x"_a);
  m.def("concat", concat, "parts"_a);
  m.def("stack", stack, "parts"_a);
  m.def("add", add, "a"_a, "b"_a);
  m.def("silu", silu, "x"_a);
  m.def("select", select_op, "x"_a, "rows"_a);
  nb::class_<Guesser>(m, "Guesser", "A guess layer, checked.");
  nb::class_<HeadRows>(m, "HeadRows", "Rows of a head, with their tokens.");
  nb::class_<Fusion>(m, "Fusion", "How hidden states become features.");
  m.def(
      "guesser",
      [](nb::handle layer, const HeadRows& head) {
        return std::const_pointer_cast<Guesser>(read_guesser(layer, head));
      },
      "layer"_a, "head"_a);
  m.def("head_rows", head_rows, "weight"_a, "tokens"_a);
  m.def("fusion", fusion, "fc"_a, "norms"_a, "joint_norm"_a.none(), "eps"_a, "adds_last"_a);
  m.def("scored", scored_op, "x"_a, "plan"_a);
  m.def("sampling_params", [] {
    return nb::cast(std::vector<std::string>(std::begin(kSamplingParams), std::end(kSamplingParams)));
  });
  nb::class_<PythonBatch>(m, "SamplingBatch", "How each row of logits becomes a token: arrays, checked.")
      .def(nb::init<int64_t, nb::handle, nb::handle, nb::handle, nb::handle, nb::handle, nb::handle, nb::handle,
                    nb::handle, nb::handle, nb::handle, nb::handle>(),
           "num_rows"_a, "params"_a = nb::none(), "seeds"_a = nb::none(), "sample_indices"_a = nb::none(),
           "positions"_a = nb::none(), "streams"_a = nb::none(), "prompts"_a = nb::none(), "outputs"_a = nb::none(),
           "masks"_a = nb::none(), "has_mask"_a = nb::none(), "bias_tokens"_a = nb::none(), "biases"_a = nb::none());
  nb::class_<Context>(m, "Context", "What the kernels of one NativeOps need.")
      .def(nb::init<int>(), "threads"_a)
      .def("pack", pack, "raw"_a.noconvert(), "format"_a, "out"_a, "in_"_a, "stays"_a = false, "mapped"_a = false)
      .def("round", round_op, "x"_a.noconvert(), "format"_a)
      .def("kv_move", kv_move, "kv"_a, "sources"_a, "targets"_a)
      .def("embed", embed, "weight"_a, "plan"_a)
      .def("rms_norm", rms_norm, "x"_a, "weight"_a, "eps"_a)
      .def("scale", scale_op, "x"_a, "factor"_a)
      .def("soft_cap", soft_cap_op, "x"_a, "cap"_a)
      .def("gate", gate_op, "gate"_a, "up"_a, "activation"_a)
      .def("linear", linear_op, "x"_a, "weight"_a, "bias"_a.none())
      .def("rope_store", rope_store_op, "q"_a, "k"_a, "v"_a, "layer"_a, "kv"_a, "plan"_a)
      .def("attend", attend_op, "q"_a, "layer"_a, "kv"_a, "plan"_a)
      .def("gated_mlp", gated_mlp_op, "x"_a, "layer"_a)
      .def("experts", experts_op, "x"_a, "layer"_a)
      .def("decoder_layers", decoder_layers_op, "x"_a, "layers"_a, "kv"_a, "plan"_a)
      .def("logits", logits_op, "x"_a, "norm"_a, "eps"_a, "weight"_a, "plan"_a)
      .def("fuse", fuse_op, "fusion"_a, "parts"_a)
      .def("guess", guess_op, "features"_a, "guesser"_a, "kv"_a, "plan"_a, "further"_a, "batch"_a, "k"_a)
      .def("best_of_columns", best_of_columns, "logits"_a, "columns"_a, "vocabulary"_a, "batch"_a, "k"_a)
      .def("sample", sample_op, "logits"_a, "batch"_a, "k"_a)
      .def("probs", probs_op, "logits"_a, "batch"_a)
      .def("logprobs", logprobs_op, "logits"_a, "tokens"_a)
      .def("top_k", top_k_op, "logits"_a, "k"_a)
      .def("read_bandwidth", read_bandwidth, "num_bytes"_a, "repeats"_a);
}
