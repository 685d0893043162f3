// One step of AdamW8 in slabs, as the pager cuts them.
#pragma once

#include <cstdint>
#include <span>

#include "kernels/backend.h"
#include "quant/q8.h"

namespace qt::test {

// op: views of whole tensors. slab_ends: elements where slabs end, multiples of a block but for the last;
// empty: one slab.
inline void run_in_slabs(Backend& backend, const AdamW8& op, std::span<const std::int64_t> slab_ends = {}) {
  const std::int64_t whole[] = {op.master.elems()};
  std::int64_t begin = 0;
  for (const std::int64_t end : slab_ends.empty() ? std::span<const std::int64_t>(whole) : slab_ends) {
    const std::int64_t n = end - begin, block = begin / kQ8BlockElems, scales = q8_scale_count(n);
    AdamW8 slab = op;
    slab.master = op.master.flat(begin, n);
    slab.grad = op.grad.flat(begin, n);
    slab.m_codes = op.m_codes.flat(begin, n);
    slab.v_codes = op.v_codes.flat(begin, n);
    slab.m_absmax = op.m_absmax.flat(block, scales);
    slab.v_absmax = op.v_absmax.flat(block, scales);
    slab.first_element = op.first_element + begin;
    backend.run(slab);
    begin = end;
  }
}

}  // namespace qt::test
