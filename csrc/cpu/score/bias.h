// The bias by distance of a tile. Key j and lane i of a step read the table at one place less than
// key j + 1 and as lane i - 1 do: written backwards, a step's part of the table is a row from which
// each key reads lanes that lie next to each other.

// The table of the tile's head.
template <typename T>
struct HeadBias {
  const T* data;
  int64_t rows, zero_row;
  bool clip;

  HeadBias() = default;
  HeadBias(const BiasTerm& bias, int64_t head)
      : data(static_cast<const T*>(bias.table.data) + head * bias.table.head_stride),
        rows(bias.table.rows),
        zero_row(bias.zero_row),
        clip(bias.clip) {}

  // Offsets of a step: from `first` on, as many as keys and lanes have between them.
  static int64_t first(const Step& step) { return step.offset - (step.lanes - 1); }
  static int64_t count(const Step& step) { return step.lanes - 1 + step.keys; }
};

template <typename T>
struct BiasForward {
  HeadBias<T> table;
  T factor;
  T* window;  // the step's part of the table, backwards

  void layout(Arena& arena) { window = arena.take<T>(kTileQueries<T> + kStepKeys); }

  // `factor` is what a natural logit is multiplied by.
  void start(const AttentionParams& p, int64_t head, T factor_) {
    table = HeadBias<T>(p.bias, head), factor = factor_;
  }

  void add(const Step& step, T* logits) {
    constexpr int pitch = kTileQueries<T>;
    const int64_t n = table.count(step);
    const BandRows cut = band_rows(table.first(step), n, table.rows, table.zero_row);
    T* to = window + n;
    const T low = table.clip ? table.data[0] * factor : T(0);
    const T high = table.clip ? table.data[table.rows - 1] * factor : T(0);
    for (int64_t i = 0; i < cut.below; ++i) *--to = low;
    for (int64_t i = 0; i < cut.inside; ++i) *--to = table.data[cut.row + i] * factor;
    for (int64_t i = 0; i < cut.above; ++i) *--to = high;
    for (int s = 0; s < step.n_slabs; ++s) {
      const Slab& slab = step.slabs[s];
      for (int key = slab.key; key < slab.key + slab.keys; ++key) {
        T* row = logits + key * pitch;
        const T* from = window + step.keys - 1 - key;
        for (int lane = slab.lane; lane < slab.lane + slab.lanes; lane += kLanes<T>) {
          store<T>(row + lane, load(row + lane) + load(from + lane));
        }
      }
    }
  }
};

template <typename T>
struct BiasBackward {
  BiasForward<T> forward;
  T* sums;  // of the chunk, for the tile's head: [rows]

  void layout(Arena& arena) { forward.layout(arena); }
  void start(const AttentionParams& p, int64_t head, T factor, T* sums_) {
    forward.start(p, head, factor), sums = sums_;
  }

  // Adds the logits' gradients up by offset.
  void collect(const Step& step, const T* grads) {
    constexpr int pitch = kTileQueries<T>, w = kLanes<T>;
    const HeadBias<T>& table = forward.table;
    T* const window = forward.window;
    const int64_t n = table.count(step);
    fill<T>(window, n, 0);
    for (int s = 0; s < step.n_slabs; ++s) {
      const Slab& slab = step.slabs[s];
      // Neighbouring keys add to places that overlap, for which a load would have to wait: every
      // w-th key first.
      for (int turn = 0; turn < w; ++turn) {
        for (int key = slab.key + turn; key < slab.key + slab.keys; key += w) {
          const T* row = grads + key * pitch;
          T* to = window + step.keys - 1 - key;
          for (int lane = slab.lane; lane < slab.lane + slab.lanes; lane += w) {
            store<T>(to + lane, load(to + lane) + load(row + lane));
          }
        }
      }
    }
    const BandRows cut = band_rows(table.first(step), n, table.rows, table.zero_row);
    const T* from = window + n;
    for (int64_t i = 0; i < cut.below; ++i) add_beyond(*--from, 0);
    for (int64_t i = 0; i < cut.inside; ++i) sums[cut.row + i] += *--from;
    for (int64_t i = 0; i < cut.above; ++i) add_beyond(*--from, table.rows - 1);
  }

  void add_beyond(T grad, int64_t row) {
    if (forward.table.clip) sums[row] += grad;
  }
};
