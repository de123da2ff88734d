// ldmatrix and mma.sync, from the fragment layouts in the PTX manual. Lane l holds, with row = l / 4 and pair = l % 4:
//
//   16-bit 8x8 matrix   elements (row, 2 pair) and (row, 2 pair + 1)
//   a, 16 rows          a[0]: rows 0-7, first 16 bytes of k   a[1]: rows 8-15   a[2], a[3]: the same, last 16 bytes of
//   k b, 8 columns        b[0]: first 16 bytes of k, b[1]: last 16; `row` counts columns sum, 16 x 8         sum[0],
//   sum[1]: (row, 2 pair), (row, 2 pair + 1)   sum[2], sum[3]: the same of row + 8
#pragma once
#include "collectives.h"
#include "copies.h"

namespace cuda_on_cpu {

template <int kMatrices>
CUDA_ON_CPU_NOT_WATCHED void load_matrices(const char* name, uint32_t (&fragment)[kMatrices], const void* row,
                                           bool transposed, Place place) {
  const int lane = Block::current().running().lane();
  if (lane < 8 * kMatrices) check_shared(name, place, row);
  Exchange<const void*> rows(name, place, kWholeWarp, row);
  for (int m = 0; m < kMatrices; ++m) {
    uint16_t pair[2];
    for (int i = 0; i < 2; ++i) {
      const int r = transposed ? lane % 4 * 2 + i : lane / 4, c = transposed ? lane / 4 : lane % 4 * 2 + i;
      const auto* element = static_cast<const uint16_t*>(rows.of(m * 8 + r)) + c;
      note_read(element, sizeof(uint16_t), place);
      pair[i] = *element;
    }
    fragment[m] = pair[0] | uint32_t(pair[1]) << 16;
  }
}

template <int kMatrices>
void ldmatrix(uint32_t (&fragment)[kMatrices], const void* row, Place place = Place::here()) {
  static_assert(kMatrices == 1 || kMatrices == 2 || kMatrices == 4);
  load_matrices("ldmatrix", fragment, row, false, place);
}

template <int kMatrices>
void ldmatrix_trans(uint32_t (&fragment)[kMatrices], const void* row, Place place = Place::here()) {
  static_assert(kMatrices == 1 || kMatrices == 2 || kMatrices == 4);
  load_matrices("ldmatrix_trans", fragment, row, true, place);
}

// Element i of the 32 / sizeof(T) / 8 elements of T in a register.
template <typename T>
float element(uint32_t bits, int i) {
  static_assert(std::is_same_v<T, float> || std::is_same_v<T, __half> || std::is_same_v<T, __nv_bfloat16>);
  if constexpr (std::is_same_v<T, float>) {
    bits &= 0xffffe000u;  // tf32 has ten bits of mantissa; the hardware ignores the rest
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
  } else {
    const uint16_t half = bits >> 16 * i;
    T value;
    memcpy(static_cast<void*>(&value), &half, sizeof value);
    return float(value);
  }
}

template <typename T>
void mma_m16n8(float (&sum)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Place place = Place::here()) {
  struct Operands {
    uint32_t a[4], b[2];
  } own;
  memcpy(own.a, a, sizeof a), memcpy(own.b, b, sizeof b);
  Exchange<Operands> all("mma_m16n8", place, kWholeWarp, own);
  constexpr int kPerRegister = 4 / sizeof(T);
  const int lane = Block::current().running().lane();
  for (int i = 0; i < 4; ++i) {
    const int row = lane / 4, column = lane % 4 * 2 + i % 2, lower = i / 2;
    for (int half_of_k = 0; half_of_k < 2; ++half_of_k)
      for (int holder = 0; holder < 4; ++holder) {  // which lane of four holds this part of k
        const uint32_t from_a = all.of(row * 4 + holder).a[half_of_k * 2 + lower];
        const uint32_t from_b = all.of(column * 4 + holder).b[half_of_k];
        for (int k = 0; k < kPerRegister; ++k) sum[i] += element<T>(from_a, k) * element<T>(from_b, k);
      }
  }
}

}  // namespace cuda_on_cpu
