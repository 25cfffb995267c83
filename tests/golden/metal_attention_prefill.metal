kernel void attend_kernel(  device int* key_position_ptr [[ buffer(0) ]],
  device int* last_page_length_ptr [[ buffer(1) ]],
  device float* log_sum_ptr [[ buffer(2) ]],
  device half* output_ptr [[ buffer(3) ]],
  device int* page_indptr_ptr [[ buffer(4) ]],
  device int* page_values_ptr [[ buffer(5) ]],
  device half* pages_ptr [[ buffer(6) ]],
  device half* q_ptr [[ buffer(7) ]],
  device int* q_indptr_ptr [[ buffer(8) ]],
  device int* q_position_ptr [[ buffer(9) ]],
  constant attend_kernel_args_t& arg [[ buffer(10) ]],
  uint2 blockIdx [[threadgroup_position_in_grid]],
  uint2 threadIdx [[thread_position_in_threadgroup]]
) {
  thread int found[2];
  thread int rest[1];
  thread int tiles[1];
  threadgroup uint4 staged[160];
  thread int q_begin[1];
  thread int first_row[1];
  thread int first_head[1];
  thread int q_length[1];
  thread int k_length[1];
  thread int page_begin[1];
  thread int lane[1];
  thread int simdgroup[1];
  thread int own_first[1];
  thread int row_index[1];
  thread int row[1];
  thread int column[1];
  thread float maximum[1];
  thread float total_1[1];
  simdgroup_float8x8 sums[1];
  simdgroup_float8x8 zero[1];
  thread int row_index_1[1];
  thread int high[1];
  thread int low[1];
  thread int all_before[1];
  thread int any_before[1];
  thread int all_from[1];
  thread int any_from[1];
  thread int row_index_2[1];
  thread int first_seen[1];
  simdgroup_half8x8 queries[1];
  thread float scale[1];
  thread int pages[1];
  thread int base[1];
  thread int key[1];
  thread int from[1];
  simdgroup_float8x8 products[2];
  simdgroup_half8x8 keys[1];
  thread float scores[4];
  thread int own_key[1];
  thread bool grown[1];
  thread float highest[1];
  thread float shrinks[1];
  simdgroup_float8x8 factors[1];
  simdgroup_half8x8 weights[2];
  simdgroup_half8x8 values[1];
  thread float share[1];
  simdgroup_float8x8 factors_1[1];
  thread int tile_row[1];
  thread int row_index_3[1];
  thread int row_index_4[1];
  int cse_v1 = ((arg.total[0] >> 3) + arg.batch[0]);
  threadgroup half* halves = ((threadgroup half*)((threadgroup half*)(((threadgroup char*)staged) + 0)));
  threadgroup float* floats = ((threadgroup float*)((threadgroup float*)(((threadgroup char*)staged) + 0)));
  found[0] = -1;
  found[1] = 0;
  rest[0] = ((((arg.total[0] >> 3) + arg.batch[0]) - ((int)blockIdx.y)) - 1);
  for (int v = 0; v < arg.batch[0]; ++v) {
    int cse_v2 = (v + arg.q_indptr_offset[0]);
    tiles[0] = ((((q_indptr_ptr[((v + arg.q_indptr_offset[0]) + 1)] * 2) + 15) - (q_indptr_ptr[(v + arg.q_indptr_offset[0])] * 2)) / 16);
    if ((0 <= rest[0]) && (rest[0] < tiles[0])) {
      found[0] = v;
      found[1] = rest[0];
    }
    rest[0] = (rest[0] - tiles[0]);
  }
  if (0 <= found[0]) {
    q_begin[0] = q_indptr_ptr[(found[0] + arg.q_indptr_offset[0])];
    first_row[0] = (found[1] * 16);
    first_head[0] = 0;
    q_length[0] = (q_indptr_ptr[((found[0] + arg.q_indptr_offset[0]) + 1)] - q_begin[0]);
    q_length[0] = min(((q_length[0] * 2) - first_row[0]), 16);
    int condval;
    if (0 < (page_indptr_ptr[((found[0] + arg.page_indptr_offset[0]) + 1)] - page_indptr_ptr[(found[0] + arg.page_indptr_offset[0])])) {
      condval = ((((page_indptr_ptr[((found[0] + arg.page_indptr_offset[0]) + 1)] * 16) + last_page_length_ptr[(found[0] + arg.last_page_length_offset[0])]) - (page_indptr_ptr[(found[0] + arg.page_indptr_offset[0])] * 16)) - 16);
    } else {
      condval = 0;
    }
    k_length[0] = condval;
    page_begin[0] = page_indptr_ptr[(found[0] + arg.page_indptr_offset[0])];
    lane[0] = (((int)threadIdx.x) & 31);
    simdgroup[0] = (((int)threadIdx.x) >> 5);
    own_first[0] = (simdgroup[0] * 8);
    if (((int)threadIdx.x) < 16) {
      row_index[0] = (min(((int)threadIdx.x), (q_length[0] - 1)) + first_row[0]);
      row_index[0] = (((q_begin[0] * 2) + row_index[0]) + first_head[0]);
      staged[((int)threadIdx.x)] = *(device uint4*)(((device uint*)q_ptr) + (row_index[0] * 4));
    }
    row[0] = (lane[0] >> 2);
    column[0] = (lane[0] & 3);
    maximum[0] = -1.000000e+30f;
    total_1[0] = 0.000000e+00f;
    sums[0] = make_filled_simdgroup_matrix<float, 8, 8>(0.000000e+00f);
    zero[0] = make_filled_simdgroup_matrix<float, 8, 8>(0.000000e+00f);
    floats[(((simdgroup[0] * 64) + lane[0]) + 512)] = 0.000000e+00f;
    floats[(((simdgroup[0] * 64) + lane[0]) + 544)] = 0.000000e+00f;
    row_index_1[0] = (min((own_first[0] + row[0]), (q_length[0] - 1)) + first_row[0]);
    high[0] = k_length[0];
    low[0] = ((q_position_ptr[(((row_index_1[0] / 2) + q_begin[0]) + arg.q_position_offset[0])] - key_position_ptr[(found[0] + arg.key_position_offset[0])]) - 19);
    all_before[0] = high[0];
    all_before[0] = min(all_before[0], simd_shuffle_xor(all_before[0], (ushort)4));
    all_before[0] = min(all_before[0], simd_shuffle_xor(all_before[0], (ushort)8));
    all_before[0] = min(all_before[0], simd_shuffle_xor(all_before[0], (ushort)16));
    any_before[0] = high[0];
    any_before[0] = max(any_before[0], simd_shuffle_xor(any_before[0], (ushort)4));
    any_before[0] = max(any_before[0], simd_shuffle_xor(any_before[0], (ushort)8));
    any_before[0] = max(any_before[0], simd_shuffle_xor(any_before[0], (ushort)16));
    all_from[0] = low[0];
    all_from[0] = max(all_from[0], simd_shuffle_xor(all_from[0], (ushort)4));
    all_from[0] = max(all_from[0], simd_shuffle_xor(all_from[0], (ushort)8));
    all_from[0] = max(all_from[0], simd_shuffle_xor(all_from[0], (ushort)16));
    any_from[0] = low[0];
    any_from[0] = min(any_from[0], simd_shuffle_xor(any_from[0], (ushort)4));
    any_from[0] = min(any_from[0], simd_shuffle_xor(any_from[0], (ushort)8));
    any_from[0] = min(any_from[0], simd_shuffle_xor(any_from[0], (ushort)16));
    row_index_2[0] = (min(lane[0], (q_length[0] - 1)) + first_row[0]);
    k_length[0] = k_length[0];
    first_seen[0] = ((q_position_ptr[(((row_index_2[0] / 2) + q_begin[0]) + arg.q_position_offset[0])] - key_position_ptr[(found[0] + arg.key_position_offset[0])]) - 19);
    k_length[0] = max(k_length[0], simd_shuffle_xor(k_length[0], (ushort)16));
    first_seen[0] = min(first_seen[0], simd_shuffle_xor(first_seen[0], (ushort)16));
    k_length[0] = max(k_length[0], simd_shuffle_xor(k_length[0], (ushort)8));
    first_seen[0] = min(first_seen[0], simd_shuffle_xor(first_seen[0], (ushort)8));
    k_length[0] = max(k_length[0], simd_shuffle_xor(k_length[0], (ushort)4));
    first_seen[0] = min(first_seen[0], simd_shuffle_xor(first_seen[0], (ushort)4));
    k_length[0] = max(k_length[0], simd_shuffle_xor(k_length[0], (ushort)2));
    first_seen[0] = min(first_seen[0], simd_shuffle_xor(first_seen[0], (ushort)2));
    k_length[0] = max(k_length[0], simd_shuffle_xor(k_length[0], (ushort)1));
    first_seen[0] = min(first_seen[0], simd_shuffle_xor(first_seen[0], (ushort)1));
    first_seen[0] = ((max(first_seen[0], 0) / 16) * 16);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    simdgroup_load(queries[0], (&(halves[(own_first[0] * 8)])), 8, 0, (bool)0);
    scale[0] = (arg.softmax_scale[0] * 1.442695e+00f);
    if (first_seen[0] < k_length[0]) {
      pages[0] = page_values_ptr[(((min(first_seen[0], (k_length[0] - 1)) / 16) + page_begin[0]) + arg.page_values_offset[0])];
    }
    for (int v_1 = 0; v_1 < ((max((k_length[0] - first_seen[0]), 0) + 15) / 16); ++v_1) {
      base[0] = ((v_1 * 16) + first_seen[0]);
      threadgroup_barrier(mem_flags::mem_threadgroup);
      if (((int)threadIdx.x) < 16) {
        key[0] = min((base[0] + ((int)threadIdx.x)), (k_length[0] - 1));
        from[0] = ((pages[0] * 32) + (key[0] % 16));
        staged[((int)threadIdx.x)] = *(device uint4*)(((device uint*)pages_ptr) + (((long)from[0]) * (long)4));
        key[0] = (((pages[0] * 32) + (key[0] % 16)) + 16);
        staged[(((int)threadIdx.x) + 16)] = *(device uint4*)(((device uint*)pages_ptr) + (((long)key[0]) * (long)4));
      }
      if ((base[0] + 16) < k_length[0]) {
        pages[0] = page_values_ptr[(((min((base[0] + 16), (k_length[0] - 1)) / 16) + page_begin[0]) + arg.page_values_offset[0])];
      }
      threadgroup_barrier(mem_flags::mem_threadgroup);
      if (((own_first[0] < q_length[0]) && (base[0] < any_before[0])) && (any_from[0] < (base[0] + 16))) {
        products[0] = make_filled_simdgroup_matrix<float, 8, 8>(0.000000e+00f);
        products[1] = make_filled_simdgroup_matrix<float, 8, 8>(0.000000e+00f);
        simdgroup_load(keys[0], (&(halves[0])), 8, 0, (bool)1);
        simdgroup_multiply_accumulate(products[0], queries[0], keys[0], products[0]);
        simdgroup_load(keys[0], (&(halves[64])), 8, 0, (bool)1);
        simdgroup_multiply_accumulate(products[1], queries[0], keys[0], products[1]);
        simdgroup_store(products[0], (&(floats[((simdgroup[0] * 192) + 128)])), 24, 0, (bool)0);
        simdgroup_store(products[1], (&(floats[((simdgroup[0] * 192) + 136)])), 24, 0, (bool)0);
        simdgroup_barrier(mem_flags::mem_threadgroup);
        *(thread float2*)(scores + 0) = *(threadgroup float2*)(floats + ((((simdgroup[0] * 192) + (row[0] * 24)) + (column[0] * 2)) + 128));
        *(thread float2*)(scores + 2) = *(threadgroup float2*)(floats + ((((simdgroup[0] * 192) + (row[0] * 24)) + (column[0] * 2)) + 136));
        if ((all_before[0] < (base[0] + 16)) || (base[0] < all_from[0])) {
          own_key[0] = ((column[0] * 2) + base[0]);
          float condval_1;
          if ((own_key[0] < high[0]) && (low[0] <= own_key[0])) {
            condval_1 = scores[0];
          } else {
            condval_1 = -3.000000e+38f;
          }
          scores[0] = condval_1;
          float condval_2;
          if (((own_key[0] + 1) < high[0]) && (low[0] <= (own_key[0] + 1))) {
            condval_2 = scores[1];
          } else {
            condval_2 = -3.000000e+38f;
          }
          scores[1] = condval_2;
          float condval_3;
          if (((own_key[0] + 8) < high[0]) && (low[0] <= (own_key[0] + 8))) {
            condval_3 = scores[2];
          } else {
            condval_3 = -3.000000e+38f;
          }
          scores[2] = condval_3;
          float condval_4;
          if (((own_key[0] + 9) < high[0]) && (low[0] <= (own_key[0] + 9))) {
            condval_4 = scores[3];
          } else {
            condval_4 = -3.000000e+38f;
          }
          scores[3] = condval_4;
        }
        grown[0] = (bool)0;
        highest[0] = scores[0];
        highest[0] = max(highest[0], scores[1]);
        highest[0] = max(highest[0], scores[2]);
        highest[0] = max(highest[0], scores[3]);
        highest[0] = max(highest[0], simd_shuffle_xor(highest[0], (ushort)1));
        highest[0] = max(highest[0], simd_shuffle_xor(highest[0], (ushort)2));
        highest[0] = max(maximum[0], (highest[0] * scale[0]));
        grown[0] = (grown[0] || (maximum[0] < highest[0]));
        shrinks[0] = exp2((maximum[0] - highest[0]));
        maximum[0] = highest[0];
        total_1[0] = (total_1[0] * shrinks[0]);
        scores[0] = exp2(((scores[0] * scale[0]) - highest[0]));
        total_1[0] = (total_1[0] + scores[0]);
        scores[1] = exp2(((scores[1] * scale[0]) - highest[0]));
        total_1[0] = (total_1[0] + scores[1]);
        scores[2] = exp2(((scores[2] * scale[0]) - highest[0]));
        total_1[0] = (total_1[0] + scores[2]);
        scores[3] = exp2(((scores[3] * scale[0]) - highest[0]));
        total_1[0] = (total_1[0] + scores[3]);
        if (simd_any(grown[0])) {
          if (column[0] == 0) {
            floats[(((simdgroup[0] * 64) + (row[0] * 9)) + 512)] = shrinks[0];
          }
          simdgroup_barrier(mem_flags::mem_threadgroup);
          simdgroup_load(factors[0], (&(floats[((simdgroup[0] * 64) + 512)])), 8, 0, (bool)0);
          simdgroup_multiply_accumulate(sums[0], factors[0], sums[0], zero[0]);
        }
        simdgroup_barrier(mem_flags::mem_threadgroup);
        *(threadgroup half2*)(halves + ((((simdgroup[0] * 384) + (row[0] * 24)) + (column[0] * 2)) + 256)) = ((half2)*(thread float2*)(scores + 0));
        *(threadgroup half2*)(halves + ((((simdgroup[0] * 384) + (row[0] * 24)) + (column[0] * 2)) + 264)) = ((half2)*(thread float2*)(scores + 2));
        simdgroup_barrier(mem_flags::mem_threadgroup);
        simdgroup_load(weights[0], (&(halves[((simdgroup[0] * 384) + 256)])), 24, 0, (bool)0);
        simdgroup_load(weights[1], (&(halves[((simdgroup[0] * 384) + 264)])), 24, 0, (bool)0);
        simdgroup_load(values[0], (&(halves[128])), 8, 0, (bool)0);
        simdgroup_multiply_accumulate(sums[0], weights[0], values[0], sums[0]);
        simdgroup_load(values[0], (&(halves[192])), 8, 0, (bool)0);
        simdgroup_multiply_accumulate(sums[0], weights[1], values[0], sums[0]);
      }
    }
    total_1[0] = (total_1[0] + simd_shuffle_xor(total_1[0], (ushort)1));
    total_1[0] = (total_1[0] + simd_shuffle_xor(total_1[0], (ushort)2));
    float condval_5;
    if (0.000000e+00f < total_1[0]) {
      float condval_6;
      if (0.000000e+00f < total_1[0]) {
        condval_6 = total_1[0];
      } else {
        condval_6 = 1.000000e+00f;
      }
      condval_5 = (1.000000e+00f / condval_6);
    } else {
      condval_5 = 0.000000e+00f;
    }
    share[0] = condval_5;
    if (column[0] == 0) {
      floats[(((simdgroup[0] * 64) + (row[0] * 9)) + 512)] = share[0];
    }
    simdgroup_barrier(mem_flags::mem_threadgroup);
    simdgroup_load(factors_1[0], (&(floats[((simdgroup[0] * 64) + 512)])), 8, 0, (bool)0);
    simdgroup_multiply_accumulate(sums[0], factors_1[0], sums[0], zero[0]);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    simdgroup_store(sums[0], (&(floats[(simdgroup[0] * 64)])), 8, 0, (bool)0);
    simdgroup_barrier(mem_flags::mem_threadgroup);
    if (lane[0] < 16) {
      tile_row[0] = ((lane[0] >> 1) + own_first[0]);
      if (tile_row[0] < q_length[0]) {
        row_index_3[0] = (first_row[0] + tile_row[0]);
        *(device half4*)(output_ptr + ((((q_begin[0] * 16) + (row_index_3[0] * 8)) + (first_head[0] * 8)) + ((lane[0] & 1) * 4))) = ((half4)*(threadgroup float4*)(floats + ((simdgroup[0] * 64) + (lane[0] * 4))));
      }
    }
    own_first[0] = (own_first[0] + row[0]);
    if ((column[0] == 0) && (own_first[0] < q_length[0])) {
      row_index_4[0] = (first_row[0] + own_first[0]);
      float condval_7;
      if (0.000000e+00f < total_1[0]) {
        float condval_8;
        if (0.000000e+00f < total_1[0]) {
          condval_8 = total_1[0];
        } else {
          condval_8 = 1.000000e+00f;
        }
        condval_7 = (maximum[0] + log2(condval_8));
      } else {
        condval_7 = -1.000000e+30f;
      }
      log_sum_ptr[(((q_begin[0] * 2) + row_index_4[0]) + first_head[0])] = condval_7;
    }
  }
}
