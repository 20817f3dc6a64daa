// What lies where in the workspace of the Fourier feature mixer.
#pragma once
#include "device.cuh"

namespace lgld::cuda {

template <class T>
struct FfmMemory {
  double *rows, *columns;       // sin and cos of the rows' phases [2][out_height], of the columns' [2][out_width]
  T *row_terms, *column_terms;  // the same in the arithmetic's type
  double* centre;               // [inputs], what is taken from the image before it is multiplied; a T's value
  double* partial;              // [tasks][record] moments
  double* moments;              // [record], their sums
  double *mean, *covariance;    // [features], [features][features]
  double *z_mean, *z_var;       // [channels]
  T* folded;                    // [channels][ffm_record]
  // backward only
  T* sums;        // [channels][tiles][1 + features]: of g_u and g_u f'
  T* projected;   // [chunks][inputs][positions]: sum over a chunk's channels of slope g_u
  double* total;  // [channels][1 + features]
  double* back;   // [channels][3]: gain m, m0, m1 m / sigma (see ffm_gradients in kernels/cpu/ffm/plan.cpp)
  T* correction;  // [inputs][features + 1]
  int64_t tiles, chunks;
};

// Cuts `base` into the parts above, null those that have no elements; returns the bytes that they take, also where base is
// null.
template <class T>
size_t ffm_memory(const FfmShape& s, bool training, int64_t tiles, int64_t chunks, bool need_x, void* base, FfmMemory<T>* m) {
  size_t used = 0;
  const auto take = [&](auto*& part, int64_t count) {
    using Item = std::remove_reference_t<decltype(*part)>;
    part = base == nullptr || count == 0 ? nullptr : reinterpret_cast<Item*>(static_cast<char*>(base) + used);
    used += (static_cast<size_t>(count) * sizeof(Item) + 255) / 256 * 256;
  };
  const int64_t features = s.features();
  const FfmMoments moments = ffm_moments(s);
  take(m->rows, 2 * s.out_height), take(m->columns, 2 * s.out_width);
  take(m->row_terms, 2 * s.out_height), take(m->column_terms, 2 * s.out_width);
  take(m->centre, s.inputs);
  take(m->partial, training ? moments.tasks * moments.record : 0), take(m->moments, training ? moments.record : 0);
  take(m->mean, features), take(m->covariance, training ? features * features : 0);
  take(m->z_mean, s.channels), take(m->z_var, s.channels);
  take(m->folded, s.channels * ffm_record(s.inputs));
  const bool backward = tiles > 0;
  take(m->sums, s.channels * tiles * (1 + features));
  take(m->projected, need_x ? chunks * s.inputs * s.positions() : 0);
  take(m->total, backward ? s.channels * (1 + features) : 0), take(m->back, backward ? 3 * s.channels : 0);
  take(m->correction, need_x ? s.inputs * (features + 1) : 0);
  m->tiles = tiles, m->chunks = chunks;
  return used;
}

// What every kernel of a call is given.
template <class T>
struct FfmCall {
  FfmArguments a;
  FfmMemory<T> m;
};

// The position terms, the statistics and the folded map of a call, ready for the passes over the map. mean and var, each
// [channels], are written in training where they are not null.
template <class E>
cudaError_t ffm_prepare(const FfmCall<Compute<E>>& call, void* mean, void* var, cudaStream_t stream);

// The gradients of the parameters, and the correction of grad_x where it is wanted, from the sums that a pass left.
template <class T>
cudaError_t ffm_finish_backward(const FfmCall<T>& call, const FfmGradients& gradients, cudaStream_t stream);

}  // namespace lgld::cuda
