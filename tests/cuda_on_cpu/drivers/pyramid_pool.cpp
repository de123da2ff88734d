// The CUDA kernels of pyramid_pool, launched as csrc/cuda/pyramid_pool.cu does. Tensors of any strides come as their
// storage and their `form`: offset in it, sizes and strides. `shared_bytes` stands for the shared memory that a block
// may fill.
#include "cuda/pyramid_pool.cuh"

#include "cpu.h"
#include "cuda/pyramid_pool_backward.cuh"

using namespace fastseg;
using cuda_on_cpu::Array;
using cuda_on_cpu::Cpu;

namespace {

// Of (N, C, H, W).
struct Problem {
  Pyramid pyramid;
  PoolOrder map, cells;

  Problem(const Array& shape, const Array& bins, bool channels_last) {
    const int64_t* n = shape.as<int64_t>();
    pyramid = make_pyramid({n[2], n[3]}, {bins.as<int64_t>(), bins.as<int64_t>() + bins.sizes[0]});
    map = {n[0], n[1], n[2] * n[3], channels_last}, cells = {n[0], n[1], pyramid.cells, channels_last};
  }

  LaunchShape a_thread_per_cell() const {
    return row_of_blocks(ceil_div<int64_t>(cells.size(), kPoolThreads), kPoolThreads);
  }
};

template <typename T>
PoolCells<T> cells_of(const Array& storage, const Array& form) {
  const int64_t* n = form.as<int64_t>();
  return {storage.as<T>() + n[0], {n[4], n[5], n[6]}};
}

template <int kCount, typename Found, typename T>
void pool(const Problem& p, const PoolInput<T>& input, T* output, int64_t* indices, int64_t shared_bytes) {
  PoolOrder order = p.map;
  order.inners = int64_t(p.pyramid.rows.segments) * p.pyramid.columns.all_cells;
  Cpu cpu;
  Found* parts = cpu.scratch<Found>(order.size());
  const auto [shape, tiles, width] = pool_rows_shape(p.map, p.pyramid, kCount, sizeof(Found), shared_bytes);
  cpu.launch(shape, pyramid_pool_rows_kernel<T, kCount, Found>, input, parts, order, p.pyramid, tiles, width);
  cpu.launch(p.a_thread_per_cell(), pyramid_pool_cells_kernel<T, Found>, parts, output, indices, order, p.cells,
             p.pyramid);
}

template <int kCount, typename T>
void spread(const Problem& p, const PoolCells<T>& grad, T* output, int64_t shared_bytes) {
  const auto [shape, tiles, width] = pool_spread_shape(p.map, p.pyramid, shared_bytes);
  Cpu().launch(shape, pyramid_pool_spread_kernel<T, kCount>, grad, output, p.map, p.pyramid, tiles, width);
}

}  // namespace

DRIVER pyramid_pool(const Array& input, const Array& form, const Array& bins, const Array& output, const Array& indices,
                    int64_t max, int64_t channels_last, int64_t vectors, int64_t shared_bytes) {
  return cuda_on_cpu::report([&] {
    const int64_t* n = form.as<int64_t>();
    const Problem p({form.as<int64_t>() + 1, "int64", {4}}, bins, channels_last);
    cuda_on_cpu::with_type<float, __half, __nv_bfloat16>(input, [&](auto* from) {
      using T = std::remove_pointer_t<decltype(from)>;
      constexpr int kMany = kPerVector<T>;
      const PoolInput<T> given{from + n[0], {n[5], n[6], n[7], n[8]}};
      T* to = output.as<T>();
      int64_t* to_indices = indices.as<int64_t>();
      if (max)
        vectors ? pool<kMany, Largest>(p, given, to, to_indices, shared_bytes)
                : pool<1, Largest>(p, given, to, to_indices, shared_bytes);
      else
        vectors ? pool<kMany, Total>(p, given, to, to_indices, shared_bytes)
                : pool<1, Total>(p, given, to, to_indices, shared_bytes);
    });
  });
}

// `shape`: of the map. Of maxima, grad_input is zero.
DRIVER pyramid_pool_backward(const Array& grad, const Array& grad_form, const Array& indices, const Array& indices_form,
                             const Array& bins, const Array& shape, const Array& grad_input, int64_t max,
                             int64_t channels_last, int64_t vectors, int64_t shared_bytes) {
  return cuda_on_cpu::report([&] {
    const Problem p(shape, bins, channels_last);
    cuda_on_cpu::with_type<float, __half, __nv_bfloat16>(grad, [&](auto* from) {
      using T = std::remove_pointer_t<decltype(from)>;
      const PoolCells<T> given = cells_of<T>(grad, grad_form);
      T* to = grad_input.as<T>();
      if (max)
        Cpu().launch(p.a_thread_per_cell(), pyramid_pool_scatter_kernel<T>, given,
                     cells_of<int64_t>(indices, indices_form), to, p.map, p.cells, p.pyramid);
      else if (vectors)
        spread<kPerVector<T>>(p, given, to, shared_bytes);
      else
        spread<1>(p, given, to, shared_bytes);
    });
  });
}
