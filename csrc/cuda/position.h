// Pixels of a batch of images by number, image after image and row after row.
#pragma once
#include "cuda/device.h"

namespace fastseg {

struct Position {
  int image, y, x;
};

template <typename Number>
__device__ __forceinline__ Position position_at(Number index, int height, int width) {
  const Number row = index / width;
  return {int(row / height), int(row % height), int(index % width)};
}

// `step` pixels on, without a division.
__device__ __forceinline__ void advance(Position& at, const Position& step, int height, int width) {
  at.x += step.x;
  if (at.x >= width) at.x -= width, ++at.y;
  at.y += step.y;
  if (at.y >= height) at.y -= height, ++at.image;
  at.image += step.image;
}

}  // namespace fastseg
