// Grouped products on a CPU that read weights, and write their gradients, where they are.
//
// Rows are sorted by expert. A unit of work is some columns of one expert's product. Part of the
// right operand is packed into panels of 64 columns (native_panels.h), which stay in the second-level
// cache, and multiplied with all rows of the expert; meanwhile the next part is fetched. What is
// packed at once has 2 KB of each row in memory: with less, address translation takes the time.
// Accumulation is in float32, threads are XLA's own. Needs GCC's vector extensions.
#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <mutex>
#include <type_traits>
#include <vector>

#include "native_panels.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace {

using namespace moegen;

constexpr int kRows = 6;    // rows whose sums are in registers at once
constexpr int kChunk = 96;  // rows of the left operand that are copied at once
template <typename T>  // rows at most whose right operand is read where it is, if it can be
constexpr int kInPlace = std::is_same_v<T, float> ? 32 : 0;
template <bool InPlace>  // lines that a tile fetches for a word: few rows have few words
constexpr int kLines = InPlace ? 2 : 1;

// What a tile fetches meanwhile: lines of memory, `1 << shift` of them from each of some rows.
struct Fetch {
  const char* data = nullptr;
  int64_t step = 0;  // bytes from row to row
  int shift = 0;
  int64_t rows = 0;
};

// The shift of a Fetch for `bytes` of each row.
inline int lines_of(int64_t bytes) {
  int shift = 0;
  while ((int64_t{kLine} << shift) < bytes) ++shift;
  return shift;
}

// sum over words k of a[r * row_step + k * k_step] times panel[k, 64], for R rows; added to
// `sums` unless this is the first part of the depth, and written to `out` if it is the last.
template <typename T, bool InPlace, int R>
void tile(const float* a, int64_t row_step, int64_t k_step, const float* panel, int64_t panel_step,
          int64_t words, float* sums, int64_t sums_step, bool first, T* out, int64_t out_step,
          int columns, const Fetch& fetch, int64_t line) {
  Floats sum[R][kVectors] = {};
  const bool fetching = (line >> fetch.shift) < fetch.rows;
  const char* from = fetching ? fetch.data : reinterpret_cast<const char*>(panel);
  const int64_t step = fetching ? fetch.step : 0, mask = (int64_t{1} << fetch.shift) - 1;
  const int64_t apart = InPlace ? panel_step : kColumns;
  for (int64_t k = 0; k < words; ++k) {
    for (int i = 0; i < kLines<InPlace>; ++i) {
      const int64_t l = line + k * kLines<InPlace> + i;
      __builtin_prefetch(from + (l >> fetch.shift) * step + (l & mask) * kLine, 0, 2);
    }
    Floats b[kVectors];
    for (int v = 0; v < kVectors; ++v) b[v] = load(panel + k * apart + v * kLanes);
    for (int r = 0; r < R; ++r) {
      const float left = a[r * row_step + k * k_step];
      for (int v = 0; v < kVectors; ++v) sum[r][v] = add_product<T>(sum[r][v], left, b[v]);
    }
  }
  for (int r = 0; r < R; ++r) {
    float* mine = sums + r * sums_step;
    if (!first) {
      for (int v = 0; v < kVectors; ++v) sum[r][v] += load(mine + v * kLanes);
    }
    if (!out) {
      for (int v = 0; v < kVectors; ++v) store(mine + v * kLanes, sum[r][v]);
      continue;
    }
    alignas(kLine) T row[kColumns];
    for (int v = 0; v < kVectors; ++v) store(row + v * kLanes, sum[r][v]);
    write_through(out + r * out_step, row, columns);
  }
}

template <typename T>
using Tile = void (*)(const float*, int64_t, int64_t, const float*, int64_t, int64_t, float*,
                      int64_t, bool, T*, int64_t, int, const Fetch&, int64_t);
template <typename T, bool InPlace>
constexpr Tile<T> kTiles[] = {tile<T, InPlace, 1>, tile<T, InPlace, 2>, tile<T, InPlace, 3>,
                              tile<T, InPlace, 4>, tile<T, InPlace, 5>, tile<T, InPlace, 6>};

// How much of the right operand is packed at once.
struct Block {
  int64_t depth, width;
};

// Rows of a product's left operand as a tile reads them, words k_step apart.
struct Left {
  const float* data;
  int64_t row_step, k_step;
};

// Rows from `row` on, words of neighbours from `k` on: where they are if that can be, else copied.
template <typename T>
Left left_rows(const Matrix<T>& a, int64_t row, int64_t rows, int64_t k, int64_t deep,
               std::vector<float>& store) {
  constexpr int kStep = kPerWord<T>;
  if (kAsStored<T> && !a.transposed && a.step % kStep == 0 && deep % kStep == 0) {
    return {reinterpret_cast<const float*>(a.at(row, k)), a.step / kStep, 1};
  }
  const int64_t high = words<T>(deep), row_step = high + kLanes;
  store.resize(rows * row_step);
  if (a.transposed) {
    for (int64_t at = 0; at < deep; at += kStep) {
      copy_across(a.at(row, k + at), a.step, deep - at, rows, store.data() + at / kStep * rows);
    }
    return {store.data(), 1, rows};
  }
  for (int64_t r = 0; r < rows; ++r) {
    copy_along(a.at(row + r, k), deep, store.data() + r * row_step);
  }
  return {store.data(), row_step, 1};
}

// Panels of a product's right operand as a tile reads them, words `k_step` apart, panels `apart`.
struct Right {
  const float* data;
  int64_t k_step, apart;
  bool in_place;
};

// The panels of a part: where it is if few rows read it and it has whole panels, else packed.
template <typename T>
Right right_panels(const Matrix<T>& part, int64_t deep, int64_t width, int64_t rows,
                   std::vector<float>& store) {
  if (rows <= kInPlace<T> && !part.transposed && width % kColumns == 0) {
    return {reinterpret_cast<const float*>(part.data), part.step, kColumns, true};
  }
  const int64_t apart = words<T>(deep) * kColumns;
  store.resize((width + kColumns - 1) / kColumns * apart + kLanes);
  float* panels = store.data();
  panels += (kLine - reinterpret_cast<uintptr_t>(panels) % kLine) % kLine / sizeof(float);
  pack(part, deep, width, panels);
  return {panels, kColumns, apart, false};
}

// Columns `first` to `first + width` of out[rows, all] = a[rows, depth] b[depth, all].
template <typename T>
void multiply(Matrix<T> a, Matrix<T> b, int64_t rows, int64_t depth, int64_t all, int64_t first,
              Block block, T* out, Fetch after) {
  thread_local std::vector<float> right_store, left_store, sums;
  const int64_t width = std::min(block.width, all - first);
  const int64_t panels = (width + kColumns - 1) / kColumns, sums_step = panels * kColumns;
  if (depth > block.depth) sums.resize(rows * sums_step);
  int64_t from_k = 0;
  do {
    const int64_t deep = std::min(block.depth, depth - from_k), high = words<T>(deep);
    const Matrix<T> part{b.at(from_k, first), b.step, b.transposed};
    const Right right = right_panels(part, deep, width, rows, right_store);
    const bool last = from_k + deep == depth;
    Fetch fetch = after;
    if (!last) {
      fetch.data = reinterpret_cast<const char*>(b.at(from_k + deep, first));
      fetch.rows = b.transposed ? width : std::min(block.depth, depth - from_k - deep);
    }
    int64_t line = 0;
    for (int64_t at = 0; at < rows; at += kChunk) {
      const int64_t chunk = std::min<int64_t>(kChunk, rows - at);
      const Left left = left_rows(a, at, chunk, from_k, deep, left_store);
      const int64_t tiles = (chunk + kRows - 1) / kRows;
      const auto run = [&](auto in_place, int64_t t, int64_t c) {
        const int64_t from = chunk * t / tiles, to = chunk * (t + 1) / tiles;
        kTiles<T, in_place>[to - from - 1](
            left.data + from * left.row_step, left.row_step, left.k_step,
            right.data + c * right.apart, right.k_step, high,
            sums.data() + (at + from) * sums_step + c * kColumns, sums_step, from_k == 0,
            last ? out + (at + from) * all + first + c * kColumns : nullptr, all,
            int(std::min<int64_t>(kColumns, width - c * kColumns)), fetch, line);
        line += high * kLines<in_place>;
      };
      if constexpr (kInPlace<T> > 0) {
        if (right.in_place) {  // all rows read a panel before the next: nothing else keeps it close
          for (int64_t c = 0; c < panels; ++c) {
            for (int64_t t = 0; t < tiles; ++t) run(std::true_type{}, t, c);
          }
          continue;
        }
      }
      for (int64_t t = 0; t < tiles; ++t) {
        for (int64_t c = 0; c < panels; ++c) run(std::false_type{}, t, c);
      }
    }
    from_k += deep;
  } while (from_k < depth);
}

// Runs `unit(i, its thread's next one)` for i < count on this thread and the pool's. A thread takes
// its next unit early: what it fetches for it must not end up in the other core's cache.
template <typename F>
void share(ffi::ThreadPool& pool, int64_t count, F unit) {
  struct State {
    std::atomic<int64_t> next{0}, done{0};
    std::mutex mutex;
    std::condition_variable all;
  };
  auto state = std::make_shared<State>();
  auto work = [state, count, unit] {
    for (int64_t i = state->next.fetch_add(1), after; i < count; i = after) {
      after = state->next.fetch_add(1);
      unit(i, after);
#ifdef __AVX512F__
      _mm_sfence();
#endif
      if (state->done.fetch_add(1) + 1 == count) {
        std::lock_guard<std::mutex> lock(state->mutex);
        state->all.notify_all();
      }
    }
  };
  if (count == 0) return;
  const int64_t helpers = std::min<int64_t>(pool.num_threads(), count) - 1;
  for (int64_t h = 0; h < helpers; ++h) pool.Schedule(std::function<void()>(work));
  work();
  std::unique_lock<std::mutex> lock(state->mutex);
  state->all.wait(lock, [&] { return state->done.load() == count; });
}

// Where each expert's rows start, and where the last one's end; empty if sizes do not fit.
std::vector<int64_t> starts_of(const ffi::Buffer<ffi::S32>& sizes, int64_t rows) {
  std::vector<int64_t> starts{0};
  for (size_t e = 0; e < sizes.element_count(); ++e) {
    const int64_t size = sizes.typed_data()[e];
    if (size < 0 || starts.back() + size > rows) return {};
    starts.push_back(starts.back() + size);
  }
  return starts;
}

// Experts with rows, those with the most first: they are shared out evenly then.
std::vector<int64_t> by_load(const std::vector<int64_t>& starts) {
  std::vector<int64_t> experts;
  const auto load = [&](int64_t e) { return starts[e + 1] - starts[e]; };
  for (int64_t e = 0; e + 1 < int64_t(starts.size()); ++e) {
    if (load(e)) experts.push_back(e);
  }
  std::stable_sort(experts.begin(), experts.end(),
                   [&](int64_t a, int64_t b) { return load(a) > load(b); });
  return experts;
}

template <typename T>
void dot(ffi::ThreadPool& pool, const T* rows, const T* weights, const std::vector<int64_t>& starts,
         int64_t count, int64_t depth, int64_t width, bool transposed, T* out) {
  const int64_t piece = 2048 / sizeof(T);
  const bool few = starts.back() < 64 * int64_t(starts.size() - 1);  // rows: packing takes longer
  Block block = transposed ? Block{piece, 128} : few ? Block{128, piece} : Block{256, piece / 2};
  const int64_t along = transposed ? block.depth : block.width;  // of what lies side by side
  const int shift = lines_of(along * sizeof(T));
  block = {std::min(block.depth, depth), std::min(block.width, width)};
  const int64_t blocks = (width + block.width - 1) / block.width;
  const std::vector<int64_t> experts = by_load(starts);
  const int64_t units = experts.size() * blocks;
  const auto weight = [=](int64_t e) {
    return Matrix<T>{weights + e * depth * width, transposed ? depth : width, transposed};
  };
  share(pool, units, [=, &starts, &experts](int64_t unit, int64_t after) {
    const int64_t e = experts[unit / blocks], first = unit % blocks * block.width;
    const Matrix<T> b = weight(e);
    Fetch fetch{nullptr, b.step * int64_t(sizeof(T)), shift, 0};
    if (after < units) {
      fetch.rows = transposed ? block.width : block.depth;
      const T* next = weight(experts[after / blocks]).at(0, after % blocks * block.width);
      fetch.data = reinterpret_cast<const char*>(next);
    }
    multiply<T>({rows + starts[e] * depth, depth, false}, b, starts[e + 1] - starts[e], depth,
                width, first, block, out + starts[e] * width, fetch);
  });
  std::memset(out + starts.back() * width, 0, (count - starts.back()) * width * sizeof(T));
}

template <typename T>
void outer(ffi::ThreadPool& pool, const T* a, const T* b, const std::vector<int64_t>& starts,
           int64_t height, int64_t width, T* out) {
  const int64_t experts = starts.size() - 1;
  int64_t most = 1;
  for (int64_t e = 0; e < experts; ++e) most = std::max(most, starts[e + 1] - starts[e]);
  const Block block{std::min<int64_t>(most, 1024 * kPerWord<T>),
                    std::min<int64_t>(most <= 256 ? 512 : 256, width)};
  const int64_t blocks = (width + block.width - 1) / block.width;
  const int shift = lines_of(block.width * sizeof(T));
  share(pool, experts * blocks, [=, &starts](int64_t unit, int64_t after) {
    const int64_t e = unit / blocks, depth = starts[e + 1] - starts[e], next = after / blocks;
    Fetch fetch{nullptr, width * int64_t(sizeof(T)), shift, 0};
    if (next < experts) {
      fetch.rows = starts[next + 1] - starts[next];
      const T* from = b + starts[next] * width + after % blocks * block.width;
      fetch.data = reinterpret_cast<const char*>(from);
    }
    multiply<T>({a + starts[e] * height, height, true}, {b + starts[e] * width, width, false},
                height, depth, width, unit % blocks * block.width, block, out + e * height * width,
                fetch);
  });
}

ffi::Error unfit() {
  return ffi::Error::InvalidArgument(
      "moegen: sizes of grouped rows must be 0 or more, and no more in all than there are rows");
}

template <typename T>
const T* data(const ffi::AnyBuffer& buffer) {
  return reinterpret_cast<const T*>(buffer.untyped_data());
}

ffi::Error grouped_dot(ffi::ThreadPool pool, ffi::AnyBuffer rows, ffi::AnyBuffer weights,
                       ffi::Buffer<ffi::S32> sizes, bool transposed,
                       ffi::Result<ffi::AnyBuffer> out) {
  const int64_t count = rows.dimensions()[0], depth = rows.dimensions()[1];
  const auto starts = starts_of(sizes, count);
  if (starts.empty()) return unfit();
  const auto run = [&](auto type) {
    using T = decltype(type);
    dot<T>(pool, data<T>(rows), data<T>(weights), starts, count, depth, out->dimensions()[1],
           transposed, reinterpret_cast<T*>(out->untyped_data()));
  };
  rows.element_type() == ffi::BF16 ? run(Bf16{}) : run(float{});
  return ffi::Error::Success();
}

ffi::Error grouped_outer(ffi::ThreadPool pool, ffi::AnyBuffer a, ffi::AnyBuffer b,
                         ffi::Buffer<ffi::S32> sizes, ffi::Result<ffi::AnyBuffer> out) {
  const auto starts = starts_of(sizes, a.dimensions()[0]);
  if (starts.empty()) return unfit();
  const auto run = [&](auto type) {
    using T = decltype(type);
    outer<T>(pool, data<T>(a), data<T>(b), starts, a.dimensions()[1], b.dimensions()[1],
             reinterpret_cast<T*>(out->untyped_data()));
  };
  a.element_type() == ffi::BF16 ? run(Bf16{}) : run(float{});
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(moegen_grouped_dot, grouped_dot,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Attr<bool>("transposed")
                                  .Ret<ffi::AnyBuffer>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(moegen_grouped_outer, grouped_outer,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Ret<ffi::AnyBuffer>());
