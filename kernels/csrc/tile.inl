// What affinity_mix does to a tile of scores between the products. A tile holds one key per row and LANES query
// rows side by side, so that a query row is a lane and its sums need no shuffles. Sums over a few keys are made in
// T, in registers, and these in double. Included by simd.inl.

namespace SIMD_NAMESPACE {

constexpr std::int64_t KEYS_IN_T = 16;

// Calls step(lane, key, part) for the first lane of each register and every key, and after every few keys
// finish(lane, part): what `step` has added up in the register `part` goes to memory there.
template <class T, class Step, class Finish>
inline void for_tile(std::int64_t keys, std::int64_t lanes, const Step& step, const Finish& finish) {
  for (std::int64_t lane = 0; lane < lanes; lane += Lanes<T>::COUNT) {
    for (std::int64_t j = 0; j < keys;) {
      const std::int64_t stop = j + KEYS_IN_T < keys ? j + KEYS_IN_T : keys;
      typename Lanes<T>::Vec part = {};
      for (; j < stop; ++j) step(lane, j, part);
      finish(lane, part);
    }
  }
}

// By registers of double: element by element it takes as long as all that comes before it.
template <class T>
inline void add_to(double* sum, const typename Lanes<T>::Vec& part) {
  using Wide = typename Lanes<double>::Vec;
  constexpr int COUNT = Lanes<double>::COUNT;
  typedef T Narrow __attribute__((vector_size(COUNT * sizeof(T))));
  for (int i = 0; i < Lanes<T>::COUNT; i += COUNT) {
    Narrow some;
    __builtin_memcpy(&some, reinterpret_cast<const T*>(&part) + i, sizeof(some));
    store(sum + i, load(sum + i) + __builtin_convertvector(some, Wide));
  }
}

template <class T>
inline void add_lanes(double* sum, const typename Lanes<T>::Vec& part) {
  for (int i = 0; i < Lanes<T>::COUNT; ++i) *sum += static_cast<double>(part[i]);
}

template <class T, bool RELU, bool CROSSED>
bool root_tile(T* tile, std::int64_t keys, std::int64_t first, std::int64_t lanes, const T* theta, const T* begin,
               const T* end, double* sum) {
  using Vec = typename Lanes<T>::Vec;
  auto some = Vec{} != Vec{};  // -1 where a sum of squares was not 0
  for_tile<T>(
      keys, lanes,
      [&](std::int64_t lane, std::int64_t j, Vec& part) {
        T* place = tile + j * LANES + lane;
        Vec root = load(place) - load(theta + lane);
        const Vec none = {};
        if (RELU) root = root < none ? none : root;  // NaN stays
        if (CROSSED) {
          const Vec key = none + static_cast<T>(first + j);
          root = key >= load(begin + lane) ? root : none;
          root = key < load(end + lane) ? root : none;
        }
        store(place, root);
        part += root * root;
      },
      [&](std::int64_t lane, const Vec& part) {
        add_to<T>(sum + lane, part);
        some |= part != Vec{};
      });
  bool any = false;
  for (int i = 0; i < Lanes<T>::COUNT; ++i) any |= some[i] != 0;
  return any;
}

// Scores become roots (scores.py): r = s - theta, with relu the positive part, 0 outside of the lane's span.
// sum[lane] += r^2. Returns whether any square is not 0. crossed: whether a span begins or ends in this tile.
template <class T>
bool roots(T* tile, std::int64_t keys, std::int64_t first, std::int64_t lanes, const T* theta, bool relu,
           const T* begin, const T* end, bool crossed, double* sum) {
  const auto run = relu ? (crossed ? root_tile<T, true, true> : root_tile<T, true, false>)
                        : (crossed ? root_tile<T, false, true> : root_tile<T, false, false>);
  return run(tile, keys, first, lanes, theta, begin, end, sum);
}

// masks[key] has the lanes, of the first `rows`, that see the key and whose score may exceed theta if it is wrong by
// reach[lane] * norms[key]. Returns their number.
template <class T>
std::int64_t above(const T* tile, std::int64_t keys, std::int64_t first, std::int64_t rows, const T* theta,
                   const T* begin, const T* end, bool crossed, const T* reach, const T* norms, std::uint64_t* masks) {
  using Vec = typename Lanes<T>::Vec;
  std::int64_t count = 0;
  for (std::int64_t j = 0; j < keys; ++j) {
    std::uint64_t mask = 0;
    for (std::int64_t lane = 0; lane < rows; lane += Lanes<T>::COUNT) {
      const Vec none = {}, key = none + static_cast<T>(first + j);
      Vec most = load(tile + j * LANES + lane) - load(theta + lane) + load(reach + lane) * norms[j];
      most = most <= none ? none : most;  // NaN stays
      if (crossed) {
        most = key >= load(begin + lane) ? most : none;
        most = key < load(end + lane) ? most : none;
      }
      mask |= nonzero_bits<T>(most) << lane;
    }
    masks[j] = mask & lanes_below(rows);
    count += __builtin_popcountll(masks[j]);
  }
  return count;
}

template <class T>
void square(const T* roots, std::int64_t keys, std::int64_t lanes, T* out) {
  for (std::int64_t j = 0; j < keys; ++j) {
    for (std::int64_t i = 0; i < lanes; i += Lanes<T>::COUNT) {
      const auto root = load(roots + j * LANES + i);
      store(out + j * LANES + i, root * root);
    }
  }
}

// x / norm, as a division rounds it, since the weight of the only edge of a row must be 1 to the bit; 0 if its inverse
// is. Where products are fused, one with the reciprocal and what is missing from it are faster by far.
template <class Vec>
inline Vec quotient(const Vec& x, const Vec& norm, const Vec& inverse) {
#if defined(__x86_64__) && SIMD_BYTES == 16
  return inverse == Vec{} ? Vec{} : x / norm;
#else
  const Vec near = x * inverse;
  return near + (x - near * norm) * inverse;
#endif
}

// sum[lane] += r^2 / l * dP, the mean that `slopes` subtracts from dP. inverse: 1 / norm.
template <class T>
void weighted_sum(const T* root, const T* product, std::int64_t keys, std::int64_t lanes, const T* norm,
                  const T* inverse, double* sum) {
  using Vec = typename Lanes<T>::Vec;
  for_tile<T>(
      keys, lanes,
      [&](std::int64_t lane, std::int64_t j, Vec& part) {
        const Vec r = load(root + j * LANES + lane);
        part += quotient<Vec>(r * r, load(norm + lane), load(inverse + lane)) * load(product + j * LANES + lane);
      },
      [&](std::int64_t lane, const Vec& part) { add_to<T>(sum + lane, part); });
}

// dP becomes dS = 2 r / l (dP - mean), share is r^2 / l; sum[lane] += dS.
template <class T>
void slopes(const T* root, T* product, std::int64_t keys, std::int64_t lanes, const T* norm, const T* inverse,
            const T* mean, T* share, double* sum) {
  using Vec = typename Lanes<T>::Vec;
  for_tile<T>(
      keys, lanes,
      [&](std::int64_t lane, std::int64_t j, Vec& part) {
        const Vec r = load(root + j * LANES + lane), total = load(norm + lane), part_of = load(inverse + lane);
        T* place = product + j * LANES + lane;
        const Vec slope = quotient<Vec>(r + r, total, part_of) * (load(place) - load(mean + lane));
        store(place, slope);
        part += slope;
        store(share + j * LANES + lane, quotient<Vec>(r * r, total, part_of));
      },
      [&](std::int64_t lane, const Vec& part) { add_to<T>(sum + lane, part); });
}

// Scores of one query row, keys side by side, become roots (with relu the positive part of s - theta). Their squares
// are added to *sum, but for NaN.
template <class T>
void edges(T* row, std::int64_t keys, T theta, bool relu, double* sum) {
  using Vec = typename Lanes<T>::Vec;
  constexpr std::int64_t COUNT = Lanes<T>::COUNT;
  const Vec none = {};
  std::int64_t j = 0;
  while (j + COUNT <= keys) {
    const std::int64_t stop = j + KEYS_IN_T * COUNT < keys - COUNT + 1 ? j + KEYS_IN_T * COUNT : keys - COUNT + 1;
    Vec part = {};
    for (; j < stop; j += COUNT) {
      Vec root = load(row + j);
      if (relu) {
        root -= theta;
        root = root < none ? none : root;  // NaN stays
        store(row + j, root);
      }
      const Vec square = root * root;
      part += square > none ? square : none;
    }
    add_lanes<T>(sum, part);
  }
  for (; j < keys; ++j) {
    if (relu) {
      row[j] -= theta;
      if (row[j] < T(0)) row[j] = T(0);
    }
    const T square = row[j] * row[j];
    if (square > T(0)) *sum += static_cast<double>(square);
  }
}

}  // namespace SIMD_NAMESPACE
