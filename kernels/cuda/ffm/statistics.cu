// The small kernels around the mixer's passes: position terms, moments of the image, statistics, folding, gradients of the
// parameters. All in double; the formulas are those of kernels/cpu/ffm/plan.cpp.
#include "workspace.h"

namespace lgld::cuda {
namespace {

constexpr int kOneBlock = 512;

template <class T>
__device__ __forceinline__ double modulation(const FfmCall<T>& f, int64_t c) {
  const int64_t half = f.a.shape.channels / 2;
  return c < half ? element(f.a.real, c) : element(f.a.imag, c - half);
}

template <class T>
__device__ __forceinline__ double weight(const FfmCall<T>& f, int64_t c, int64_t k) {
  return parameter(f.a.weight.data, f.a.weight.type, c * f.a.weight.row + k * f.a.weight.column);
}

// u[c] = slope . f' + offset, from the channel's mean and variance.
template <class T>
__device__ void fold_channel(const FfmCall<T>& f, int64_t c, double mean, double var, bool centred) {
  const FfmShape& s = f.a.shape;
  const int64_t n = s.inputs;
  const double m = modulation(f, c), scale = element_or(f.a.bn_weight, c, 1.0) / sqrt(var + f.a.eps);
  T* const out = f.m.folded + c * ffm_record(n);
  double middle = element_or(f.a.bias, c, 0.0);
  for (int64_t k = 0; k < n; ++k) {
    const double w = weight(f, c, k);
    if (centred) middle += w * f.m.centre[k];
    out[k] = static_cast<T>(scale * m * w);
  }
  for (int64_t t = 0; t < 4; ++t) out[n + (t < 2 ? t + 2 : t - 2)] = static_cast<T>(scale * m * weight(f, c, n + t));
  out[n + 4] = static_cast<T>(scale * (m * middle - mean) + element_or(f.a.bn_bias, c, 0.0));
  for (int64_t k = n + 5; k < ffm_record(n); ++k) out[k] = 0;  // whole records are copied
}

// --- before anything else: position terms; the centre, or where the statistics are given, the folded map --------------

template <class T>
__device__ __forceinline__ void position_terms(int64_t first, int64_t step, int64_t count, int64_t extent, int64_t stride,
                                               double* table, T* terms) {
  for (int64_t i = first; i < count; i += step) {
    double sine, cosine;
    sincospi(2.0 * static_cast<double>(i * stride) / static_cast<double>(extent), &sine, &cosine);
    table[i] = sine, table[count + i] = cosine;
    terms[i] = static_cast<T>(sine), terms[count + i] = static_cast<T>(cosine);
  }
}

template <class E, class T>
__global__ void __launch_bounds__(kFfmThreads) begin(const __grid_constant__ FfmCall<T> f) {
  const FfmShape& s = f.a.shape;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kFfmThreads + threadIdx.x;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kFfmThreads;
  position_terms(first, step, s.out_height, s.height, s.stride, f.m.rows, f.m.row_terms);
  position_terms(first, step, s.out_width, s.width, s.stride, f.m.columns, f.m.column_terms);
  if (!f.a.training) {
    for (int64_t k = first; k < s.inputs; k += step) f.m.centre[k] = 0;
    for (int64_t c = first; c < s.channels; c += step) {
      const double mean = element(f.a.running_mean, c), var = element(f.a.running_var, c);
      f.m.z_mean[c] = mean, f.m.z_var[c] = var;
      fold_channel(f, c, mean, var, false);
    }
    return;
  }
  // A warp for each channel of the image.
  const FfmSamples q = ffm_samples(s);
  const int lane = threadIdx.x % kWarp;
  for (int64_t k = first / kWarp; k < s.inputs; k += step / kWarp) {
    double sum = 0;
    for (int64_t i = lane; i < q.count(); i += kWarp) {
      const int64_t column = i % q.columns, rest = i / q.columns, row = rest % q.rows, image = rest / q.rows;
      sum += widen(
          *address<const E>(f.a.x, image * q.image_step, k, row * q.row_step * s.stride, column * q.column_step * s.stride));
    }
    sum = warp_sum(sum);
    if (lane == 0) f.m.centre[k] = q.count() == 0 ? 0.0 : static_cast<T>(sum / static_cast<double>(q.count()));
  }
}

// --- moments ----------------------------------------------------------------------------------------------------------

// Sums each of the block's values; result(e, sum) for each on one thread. `room` holds a value of each warp.
template <int kCount, class F>
__device__ __forceinline__ void block_sums(const double (&values)[kCount], double (&room)[kFfmWarps][kCount], F result) {
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
#pragma unroll
  for (int e = 0; e < kCount; ++e) {
    const double sum = warp_sum(values[e]);
    if (lane == 0) room[warp][e] = sum;
  }
  __syncthreads();
  for (int e = threadIdx.x; e < kCount; e += kFfmThreads) {
    double sum = 0;
    for (int w = 0; w < kFfmWarps; ++w) sum += room[w][e];
    result(e, sum);
  }
}

// A pass over the image, of which only the grid's rows are read. kIn channels.
template <class E, class T, int kIn>
__global__ void __launch_bounds__(kFfmThreads, 4) moments(const __grid_constant__ FfmCall<T> f) {
  constexpr int kPairs = kIn * (kIn + 1) / 2, kRecord = kPairs + 5 * kIn, kRows = 4;
  __shared__ double room[kFfmWarps][kRecord];
  const FfmShape& s = f.a.shape;
  const FfmMoments plan = ffm_moments(s);
  const int columns = static_cast<int>(plan.columns), groups = plan.groups();
  const int group = static_cast<int>(threadIdx.x) / columns;
  T centre[kIn];
#pragma unroll
  for (int k = 0; k < kIn; ++k) centre[k] = static_cast<T>(f.m.centre[k]);
  for (int64_t task = blockIdx.x; task < plan.tasks; task += gridDim.x) {
    const int64_t row_tile = quotient(task, plan.column_tiles), column_tile = task - row_tile * plan.column_tiles;
    const int64_t column = column_tile * columns + (static_cast<int>(threadIdx.x) - group * columns);
    const int64_t begin = row_tile * plan.rows_per_task, end = min64(begin + plan.rows_per_task, plan.rows);
    double product[kPairs] = {}, sum[kIn] = {}, row_sin[kIn] = {}, row_cos[kIn] = {};
    if (group < groups && column < s.out_width) {
      for (int64_t row = begin + group; row < end; row += kRows * groups) {
        E pixel[kRows][kIn];
        double sine[kRows], cosine[kRows];
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
          const int64_t at = min64(row + r * groups, end - 1);
          const int64_t image = quotient(at, s.out_height), i = at - image * s.out_height;
#pragma unroll
          for (int k = 0; k < kIn; ++k) pixel[r][k] = *address<const E>(f.a.x, image, k, i * s.stride, column * s.stride);
          sine[r] = f.m.rows[i], cosine[r] = f.m.rows[s.out_height + i];
        }
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
          if (row + r * groups >= end) continue;
          double v[kIn];
#pragma unroll
          for (int k = 0; k < kIn; ++k) v[k] = widen(pixel[r][k]) - centre[k];
          int pair = 0;
#pragma unroll
          for (int k = 0; k < kIn; ++k) {
#pragma unroll
            for (int l = k; l < kIn; ++l) product[pair] += v[k] * v[l], ++pair;
            sum[k] += v[k], row_sin[k] += v[k] * sine[r], row_cos[k] += v[k] * cosine[r];
          }
        }
      }
    }
    double values[kRecord];
#pragma unroll
    for (int e = 0; e < kPairs; ++e) values[e] = product[e];
    const int64_t inside = min64(column, s.out_width - 1);
    const double column_sin = f.m.columns[inside], column_cos = f.m.columns[s.out_width + inside];
#pragma unroll
    for (int k = 0; k < kIn; ++k) {
      values[kPairs + k] = sum[k];
      values[kPairs + kIn + k] = row_sin[k];
      values[kPairs + 2 * kIn + k] = row_cos[k];
      values[kPairs + 3 * kIn + k] = sum[k] * column_sin;
      values[kPairs + 4 * kIn + k] = sum[k] * column_cos;
    }
    block_sums(values, room, [&](int e, double total) { f.m.partial[task * kRecord + e] = total; });
    __syncthreads();  // room is written again
  }
}

// Any number of channels: a block for each moment of each task, which reads two of the image's channels.
template <class E, class T>
__global__ void __launch_bounds__(kFfmThreads) general_moments(const __grid_constant__ FfmCall<T> f) {
  __shared__ double room[kFfmWarps][1];
  const FfmShape& s = f.a.shape;
  const FfmMoments plan = ffm_moments(s);
  const int64_t n = s.inputs, units = plan.tasks * plan.record;
  for (int64_t unit = blockIdx.x; unit < units; unit += gridDim.x) {
    const int64_t task = unit / plan.record, moment = unit - task * plan.record;
    const int64_t row_tile = quotient(task, plan.column_tiles), column_tile = task - row_tile * plan.column_tiles;
    const int64_t begin = row_tile * plan.rows_per_task, rows = min64(begin + plan.rows_per_task, plan.rows) - begin;
    const int64_t left = column_tile * plan.columns, columns = min64(plan.columns, s.out_width - left);
    // Which channel, times which other one or which term.
    int64_t k = 0, other = moment;
    if (moment < s.pairs()) {
      for (; other >= n - k; ++k) other -= n - k;
      other += k;
    } else {
      k = (moment - s.pairs()) % n;
    }
    const int64_t term = moment < s.pairs() ? -1 : (moment - s.pairs()) / n;
    const T centre = static_cast<T>(f.m.centre[k]);
    double sum[1] = {0};
    for (int64_t p = threadIdx.x; p < rows * columns; p += kFfmThreads) {
      const int64_t r = quotient(p, columns), j = left + p - r * columns, at = begin + r;
      const int64_t image = quotient(at, s.out_height), i = at - image * s.out_height;
      const auto pixel = [&](int64_t channel) {
        return widen(*address<const E>(f.a.x, image, channel, i * s.stride, j * s.stride));
      };
      const double v = pixel(k) - centre;
      const double times = term < 0    ? pixel(other) - static_cast<T>(f.m.centre[other])
                           : term == 0 ? 1.0
                           : term < 3  ? f.m.rows[(term - 1) * s.out_height + i]
                                       : f.m.columns[(term - 3) * s.out_width + j];
      sum[0] += v * times;
    }
    block_sums(sum, room, [&](int, double total) { f.m.partial[unit] = total; });
    __syncthreads();  // room is written again
  }
}

// --- statistics of the features and of z, and the folded map ----------------------------------------------------------

// One block.
template <class T>
__global__ void __launch_bounds__(kOneBlock) finish(const __grid_constant__ FfmCall<T> f, void* mean_out, void* var_out) {
  const FfmShape& s = f.a.shape;
  const FfmMoments plan = ffm_moments(s);
  const int64_t n = s.inputs, features = s.features(), pairs = s.pairs();
  const int thread = threadIdx.x, warp = thread / kWarp, lane = thread % kWarp, warps = kOneBlock / kWarp;
  const double positions = static_cast<double>(s.positions());
  const auto table = [&](int64_t t) { return t < 2 ? f.m.rows + t * s.out_height : f.m.columns + (t - 2) * s.out_width; };
  const auto length = [&](int64_t t) { return t < 2 ? s.out_height : s.out_width; };
  double* const mean = f.m.mean;
  const auto set_covariance = [&](int64_t a, int64_t b, double v) {
    f.m.covariance[a * features + b] = v, f.m.covariance[b * features + a] = v;
  };

  for (int64_t e = warp; e < plan.record; e += warps) {
    double sum = 0;
    for (int64_t t = lane; t < plan.tasks; t += kWarp) sum += f.m.partial[t * plan.record + e];
    sum = warp_sum(sum);
    if (lane == 0) f.m.moments[e] = sum / positions;
  }
  for (int64_t t = warp; t < 4; t += warps) {
    double sum = 0;
    for (int64_t i = lane; i < length(t); i += kWarp) sum += table(t)[i];
    sum = warp_sum(sum);
    if (lane == 0) mean[n + t] = sum / static_cast<double>(length(t));
  }
  __syncthreads();

  const double* const sums = f.m.moments + pairs;
  for (int64_t a = thread; a < n; a += kOneBlock) {
    mean[a] = sums[a] + f.m.centre[a];
    const double* const products = f.m.moments + a * n - a * (a - 1) / 2;
    for (int64_t b = a; b < n; ++b) set_covariance(a, b, products[b - a] - sums[a] * sums[b]);
    for (int64_t t = 0; t < 4; ++t) set_covariance(a, n + t, sums[n * (1 + t) + a] - sums[a] * mean[n + t]);
  }
  for (int64_t e = warp; e < 10; e += warps) {
    // The pairs of terms (0,0) (0,1) (0,2) (0,3) (1,1) ... (3,3).
    const int64_t t = e < 4 ? 0 : e < 7 ? 1 : e < 9 ? 2 : 3, v = t + e - (t == 0 ? 0 : t == 1 ? 4 : t == 2 ? 7 : 9);
    double sum = 0;
    // A row's term and a column's: the mean of the products is the product of the means.
    if (t / 2 == v / 2)
      for (int64_t i = lane; i < length(t); i += kWarp) sum += (table(t)[i] - mean[n + t]) * (table(v)[i] - mean[n + v]);
    sum = warp_sum(sum);
    if (lane == 0) set_covariance(n + t, n + v, sum / static_cast<double>(length(t)));
  }
  __syncthreads();

  for (int64_t c = thread; c < s.channels; c += kOneBlock) {
    const double m = modulation(f, c);
    double along = element_or(f.a.bias, c, 0.0), square = 0;
    for (int64_t k = 0; k < features; ++k) {
      const double w = weight(f, c, k);
      along += w * mean[k];
      double product = 0;
      for (int64_t l = 0; l < features; ++l) product += f.m.covariance[k * features + l] * weight(f, c, l);
      square += w * product;
    }
    const double z_mean = m * along, z_var = m * m * (square < 0 ? 0 : square);  // rounding may make nothing a little less
    f.m.z_mean[c] = z_mean, f.m.z_var[c] = z_var;
    if (mean_out != nullptr) static_cast<T*>(mean_out)[c] = static_cast<T>(z_mean);
    if (var_out != nullptr) static_cast<T*>(var_out)[c] = static_cast<T>(z_var);
    fold_channel(f, c, z_mean, z_var, true);
  }
}

// --- gradients of the parameters --------------------------------------------------------------------------------------

// A block for each channel: the tiles' sums, then the channel's gradients. Where each comes from is said at ffm_gradients.
template <class T>
__global__ void __launch_bounds__(kFfmThreads) gradients(const __grid_constant__ FfmCall<T> f, const FfmGradients g) {
  const FfmShape& s = f.a.shape;
  const int64_t n = s.inputs, features = s.features(), record = 1 + features, half = s.channels / 2;
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const double positions = static_cast<double>(s.positions());
  for (int64_t c = blockIdx.x; c < s.channels; c += gridDim.x) {
    double* const sums = f.m.total + c * record;
    for (int64_t e = warp; e < record; e += kFfmWarps) {
      double sum = 0;
      for (int64_t t = lane; t < f.m.tiles; t += kWarp) sum += f.m.sums[(c * f.m.tiles + t) * record + e];
      sum = warp_sum(sum);
      if (lane == 0) sums[e] = sum;
    }
    __syncthreads();
    if (threadIdx.x == 0) {
      const double m = modulation(f, c), z_mean = f.m.z_mean[c], bias = element_or(f.a.bias, c, 0.0), total = sums[0];
      const double sigma = sqrt(f.m.z_var[c] + f.a.eps), gain = element_or(f.a.bn_weight, c, 1.0) / sigma;
      // sums of g_u f'_k become those of f~ = f - mean(f) in training, else of f
      double along = 0;
      for (int64_t k = 0; k < features; ++k) {
        const double middle = (f.a.training ? f.m.mean[k] : 0.0) - (k < n ? f.m.centre[k] : 0.0);
        sums[1 + k] -= middle * total;
        along += weight(f, c, k) * sums[1 + k];
      }
      double g_bn_weight, g_bias, g_modulation, m0 = 0, q = 0;
      if (f.a.training) {
        const double m1 = m / sigma * along / positions;
        m0 = total / positions, q = m1 * m / sigma;
        g_bn_weight = m1 * positions, g_bias = 0, g_modulation = gain * along * f.a.eps / (sigma * sigma);
      } else {
        const double h = along + bias * total;
        g_bn_weight = (m * h - z_mean * total) / sigma, g_bias = gain * m * total, g_modulation = gain * h;
      }
      for (int64_t k = 0; k < features; ++k) {
        double back = 0;
        if (f.a.training)
          for (int64_t l = 0; l < features; ++l) back += f.m.covariance[k * features + l] * weight(f, c, l);
        store_parameter(g.weight, f.a.weight.type, c * features + k, m * gain * (sums[1 + k] - q * positions * back));
      }
      if (g.bias != nullptr) store_parameter(g.bias, f.a.bias.type, c, g_bias);
      if (g.bn_weight != nullptr) store_parameter(g.bn_weight, f.a.bn_weight.type, c, g_bn_weight);
      if (g.bn_bias != nullptr) store_parameter(g.bn_bias, f.a.bn_bias.type, c, total);
      if (c < half) {
        store_parameter(g.real, f.a.real.type, c, g_modulation);
      } else {
        store_parameter(g.imag, f.a.imag.type, c - half, g_modulation);
      }
      f.m.back[3 * c] = gain * m, f.m.back[3 * c + 1] = m0, f.m.back[3 * c + 2] = q;
    }
    __syncthreads();
  }
}

// grad_x[k] = projected[k] - (slope[k] . f' + offset[k]): a block for each k; slope and offset, in this order, in `correction`.
template <class T>
__global__ void __launch_bounds__(kFfmThreads) correct(const __grid_constant__ FfmCall<T> f) {
  __shared__ double room[kFfmWarps][1];
  double offset = 0;  // thread 0's is used
  const FfmShape& s = f.a.shape;
  const int64_t n = s.inputs, features = s.features();
  for (int64_t k = blockIdx.x; k < n; k += gridDim.x) {
    T* const out = f.m.correction + k * (features + 1);
    for (int64_t l = features; l >= 0; --l) {  // the offset first: the others are then subtracted from it
      double sum[1] = {0};
      for (int64_t c = threadIdx.x; c < s.channels; c += kFfmThreads) {
        const double* const back = f.m.back + 3 * c;
        sum[0] += back[0] * weight(f, c, k) * (l == features ? back[1] : back[2] * weight(f, c, l));
      }
      block_sums(sum, room, [&](int, double total) {
        if (l == features) {
          offset = total;
          return;
        }
        out[l] = static_cast<T>(total);
        if (f.a.training) offset -= total * (f.m.mean[l] - (l < n ? f.m.centre[l] : 0.0));
        if (l == 0) out[features] = static_cast<T>(offset);
      });
      __syncthreads();  // room is written again
    }
  }
}

}  // namespace

template <class E>
cudaError_t ffm_prepare(const FfmCall<Compute<E>>& call, void* mean, void* var, cudaStream_t stream) {
  using T = Compute<E>;
  const FfmShape& s = call.a.shape;
  // The longest of the loops in `begin`, but no more blocks than fill a GPU.
  const int64_t longest = max64(max64(s.out_height, s.out_width), max64(s.channels, s.inputs * kWarp));
  cudaError_t status = launch(begin<E, T>, min64(ceil_div(longest, kFfmThreads), 1024), kFfmThreads, 0, stream, call);
  if (status != cudaSuccess || !call.a.training) return status;
  const FfmMoments plan = ffm_moments(s);
  if (plan.tasks > 0 && (s.inputs == 1 || s.inputs == 3)) {
    const auto kernel = s.inputs == 1 ? moments<E, T, 1> : moments<E, T, 3>;
    status = launch(kernel, blocks_for(plan.tasks), kFfmThreads, 0, stream, call);
  } else if (plan.tasks > 0) {
    status = launch(general_moments<E, T>, blocks_for(plan.tasks * plan.record), kFfmThreads, 0, stream, call);
  }
  if (status != cudaSuccess) return status;
  return launch(finish<T>, 1, kOneBlock, 0, stream, call, mean, var);
}

template <class T>
cudaError_t ffm_finish_backward(const FfmCall<T>& call, const FfmGradients& g, cudaStream_t stream) {
  const cudaError_t status = launch(gradients<T>, blocks_for(call.a.shape.channels), kFfmThreads, 0, stream, call, g);
  if (status != cudaSuccess || call.m.correction == nullptr) return status;
  return launch(correct<T>, blocks_for(call.a.shape.inputs), kFfmThreads, 0, stream, call);
}

template cudaError_t ffm_prepare<float>(const FfmCall<float>&, void*, void*, cudaStream_t);
template cudaError_t ffm_prepare<double>(const FfmCall<double>&, void*, void*, cudaStream_t);
template cudaError_t ffm_prepare<__half>(const FfmCall<float>&, void*, void*, cudaStream_t);
template cudaError_t ffm_prepare<__nv_bfloat16>(const FfmCall<float>&, void*, void*, cudaStream_t);
template cudaError_t ffm_finish_backward<float>(const FfmCall<float>&, const FfmGradients&, cudaStream_t);
template cudaError_t ffm_finish_backward<double>(const FfmCall<double>&, const FfmGradients&, cudaStream_t);

}  // namespace lgld::cuda
