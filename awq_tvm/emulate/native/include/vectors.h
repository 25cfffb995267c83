// Vectors of both dialects; one of 2, 4, 8 or 16 bytes is copied by one access, as on the device.
#pragma once

template <typename T, int N>
struct AwqVector;
template <typename T>
struct alignas(2 * sizeof(T)) AwqVector<T, 2> {
  T x, y;
  T& operator[](int i) { return (&x)[i]; }
};
template <typename T>
struct AwqVector<T, 3> {
  T x, y, z;
  T& operator[](int i) { return (&x)[i]; }
};
template <typename T>
struct alignas(4 * sizeof(T) < 16 ? 4 * sizeof(T) : 16) AwqVector<T, 4> {
  T x, y, z, w;
  T& operator[](int i) { return (&x)[i]; }
};
