// Matrix products y = x W^T for every weight format, and the packing that makes them fast.
//
// Specification: `linear` of src/outpace/ops/reference/ on `dequantise` of src/outpace/ops/formats.py, but for the
// rounding of activations to int8 (quantised weights) or bfloat16 (BF16 weights, on CPUs with BF16 dot products).
//
// Exactness (docs/decisions/0003): y[row, out] is a pure function of that row of x and that row of W. K is summed in
// one fixed order with fixed operations, whatever the number of rows, the order of rows or the split into tiles.
//
// Threads: nothing here starts one. Functions that take a range of tiles or rows are re-entrant; threads call them with
// disjoint ranges of one Matrix or Activations. The caller puts a barrier between `prepare` and `matmul_tiles`.
//
// Pointers are trusted here (the Python boundary checks them); sizes are checked where objects are made.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string_view>

namespace outpace {

enum class Format : uint8_t {
  F32,
  F16,
  BF16,
  Q8_0,
  Q4_0,
  Q4_1,
  Q5_0,
  Q5_1,
  Q4_K,
  Q5_K,
  Q6_K,
  Q2_K,
  Q3_K,
  IQ4_NL,
  IQ4_XS,
  MXFP4
};

// The form in which a matrix wants its activations.
enum class ActKind : uint8_t { F32, BF16, Int8 };

constexpr int64_t kTileWidth = 16;  // output columns of a tile, for every format and instruction set

Format format_from_name(std::string_view name);  // as GGUF spells it; throws std::invalid_argument
std::string_view format_name(Format format);
int64_t block_width(Format format);              // `in` must be a multiple of this
int64_t row_bytes(Format format, int64_t in);    // bytes of one row as files store it

// Memory aligned to 64 bytes, zeroed when made. From 2 MiB on it asks for huge pages, whose addresses cost less to
// translate.
class AlignedBuffer {
 public:
  AlignedBuffer() = default;
  // A mapping of its own. Throws std::bad_alloc.
  explicit AlignedBuffer(size_t bytes);
  // A piece of a large mapping that many buffers share, so that small ones lie in huge pages too. Memory returns to the
  // system when all pieces of a mapping are gone. Throws std::bad_alloc.
  static AlignedBuffer in_huge_pages(size_t bytes);

  // Memory that is somebody else's, as long as there is a pointer to `mapping`.
  static AlignedBuffer view(std::shared_ptr<void> mapping, uint8_t* data, size_t bytes);

  uint8_t* data() { return data_; }
  const uint8_t* data() const { return data_; }
  size_t size() const { return size_; }

 private:
  std::shared_ptr<void> mapping_;
  uint8_t* data_ = nullptr;
  size_t size_ = 0;
};

// A packed weight [out, in]: tiles of 16 columns, each contiguous; columns past `out` are zero.
struct Matrix {
  Format format;
  int64_t out, in;
  ActKind act;         // what `matmul_tiles` wants
  int64_t tile_bytes;  // a multiple of 64
  AlignedBuffer data;  // num_tiles * tile_bytes

  int64_t num_tiles() const { return (out + kTileWidth - 1) / kTileWidth; }
};

// Makes an empty matrix. Throws std::invalid_argument if out or in is not positive, in is not a multiple of
// block_width(format), or the sizes overflow.
Matrix make_matrix(Format format, int64_t out, int64_t in);

// The same without memory: `data` is empty.
Matrix matrix_without_data(Format format, int64_t out, int64_t in);

// Packs tiles [begin, end) from `raw`: the file's bytes of the whole matrix [out, row_bytes(format, in)], any alignment.
void pack_tiles(Matrix& matrix, const uint8_t* raw, int64_t begin, int64_t end);

// Writes row `row` of the matrix [in] as float32, bitwise what `dequantise` gives. For embeddings.
void dequantise_row(const Matrix& matrix, int64_t row, float* y);

// Rows of x in the form that matrices of one ActKind want; the buffer is reused between calls.
class Activations {
 public:
  // Makes room for rows [rows, in]; contents are lost. Not while other threads use it. Allocates only when growing.
  void resize(ActKind kind, int64_t rows, int64_t in);

  ActKind kind() const { return kind_; }
  int64_t rows() const { return rows_; }
  int64_t in() const { return in_; }
  uint8_t* data() { return buffer_.data(); }
  const uint8_t* data() const { return buffer_.data(); }

 private:
  ActKind kind_ = ActKind::F32;
  int64_t rows_ = 0, in_ = 0;
  AlignedBuffer buffer_;
};

// Converts rows [begin, end) of x (row r at x + r * ldx, 4-byte aligned) into `activations`, which was resized before.
void prepare(Activations& activations, const float* x, int64_t ldx, int64_t begin, int64_t end);

// y[r * ldy + o] = sum over k of x[r, k] W[o, k], for rows [0, activations.rows()) and the columns o < out of tiles
// [begin, end). activations.kind() must be matrix.act and activations.in() matrix.in. y need not be aligned beyond 4.
void matmul_tiles(const Matrix& matrix, const Activations& activations, float* y, int64_t ldy, int64_t begin,
                  int64_t end);

// Reads every byte of [data, data + bytes), 64-byte aligned, the way the kernels stream weights, and returns a digest
// so that the reads cannot be left out. For measuring bandwidth: bytes / seconds, over all threads.
uint64_t read_stream(const uint8_t* data, size_t bytes);

}  // namespace outpace
