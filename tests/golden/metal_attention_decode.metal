kernel void attend_kernel(  device int* last_page_length_ptr [[ buffer(0) ]],
  device int* page_indptr_ptr [[ buffer(1) ]],
  device int* page_values_ptr [[ buffer(2) ]],
  device half* pages_ptr [[ buffer(3) ]],
  device half* q_ptr [[ buffer(4) ]],
  device float* split_states_ptr [[ buffer(5) ]],
  device float* split_sums_ptr [[ buffer(6) ]],
  constant attend_kernel_args_t& arg [[ buffer(7) ]],
  uint3 blockIdx [[threadgroup_position_in_grid]],
  uint3 threadIdx [[thread_position_in_threadgroup]]
) {
  thread int place[1];
  thread int slot[1];
  thread int key_warp[1];
  thread int length[1];
  thread int share[1];
  thread int start[1];
  thread float maximum[2];
  thread float total[2];
  thread float sums[16];
  thread float scale[1];
  thread uint4 words[1];
  thread half2 pairs[4];
  thread float queries[16];
  thread half2 pairs_1[4];
  thread int page_begin[1];
  thread int own_start[1];
  thread int page[1];
  thread int base[1];
  thread int key[1];
  thread uint4 words_1[1];
  thread uint4 words_2[1];
  thread half2 pairs_2[4];
  thread float scores[2];
  thread float highest[1];
  thread float shrink[1];
  thread float highest_1[1];
  thread float shrink_1[1];
  thread half2 pairs_3[4];
  thread float other[1];
  thread float both[1];
  thread float own_weight[1];
  thread float other_1[1];
  thread float both_1[1];
  thread float own_weight_1[1];
  thread float other_2[1];
  thread float both_2[1];
  thread float own_weight_2[1];
  thread float other_3[1];
  thread float both_3[1];
  thread float own_weight_3[1];
  thread float other_4[1];
  thread float both_4[1];
  thread float own_weight_4[1];
  thread float other_5[1];
  thread float both_5[1];
  thread float own_weight_5[1];
  thread float other_6[1];
  thread float both_6[1];
  thread float own_weight_6[1];
  thread float other_7[1];
  thread float both_7[1];
  thread float own_weight_7[1];
  threadgroup float warp_sums[64];
  threadgroup float warp_states[8];
  thread int index[1];
  thread int head[1];
  thread int feature[1];
  thread float highest_2[1];
  thread float total_1[1];
  thread float value[1];
  thread float weight[1];
  thread float weight_1[1];
  place[0] = (((int)threadIdx.x) & 1);
  slot[0] = ((((int)threadIdx.x) & 31) >> 1);
  key_warp[0] = (((int)threadIdx.x) >> 5);
  int cse_v1 = (((int)blockIdx.x) + arg.page_indptr_offset[0]);
  int cse_v2 = ((((int)blockIdx.x) + arg.page_indptr_offset[0]) + 1);
  int condval;
  if (0 < (page_indptr_ptr[((((int)blockIdx.x) + arg.page_indptr_offset[0]) + 1)] - page_indptr_ptr[(((int)blockIdx.x) + arg.page_indptr_offset[0])])) {
    condval = ((((page_indptr_ptr[((((int)blockIdx.x) + arg.page_indptr_offset[0]) + 1)] * 16) + last_page_length_ptr[(((int)blockIdx.x) + arg.last_page_length_offset[0])]) - (page_indptr_ptr[(((int)blockIdx.x) + arg.page_indptr_offset[0])] * 16)) - 16);
  } else {
    condval = 0;
  }
  length[0] = condval;
  share[0] = (((length[0] + arg.cse_v3[0]) - 1) / arg.cse_v3[0]);
  share[0] = (max(((share[0] + 15) / 16), 4) * 16);
  start[0] = (((int)blockIdx.z) * share[0]);
  share[0] = min((start[0] + share[0]), length[0]);
  if ((start[0] < share[0]) || (((int)blockIdx.z) == 0)) {
    maximum[0] = -1.000000e+30f;
    total[0] = 0.000000e+00f;
    maximum[1] = -1.000000e+30f;
    total[1] = 0.000000e+00f;
    sums[0] = 0.000000e+00f;
    sums[1] = 0.000000e+00f;
    sums[2] = 0.000000e+00f;
    sums[3] = 0.000000e+00f;
    sums[4] = 0.000000e+00f;
    sums[5] = 0.000000e+00f;
    sums[6] = 0.000000e+00f;
    sums[7] = 0.000000e+00f;
    sums[8] = 0.000000e+00f;
    sums[9] = 0.000000e+00f;
    sums[10] = 0.000000e+00f;
    sums[11] = 0.000000e+00f;
    sums[12] = 0.000000e+00f;
    sums[13] = 0.000000e+00f;
    sums[14] = 0.000000e+00f;
    sums[15] = 0.000000e+00f;
    scale[0] = arg.cse_v4[0];
    int cse_v5 = (((int)blockIdx.x) * 16);
    words[0] = *(device uint4*)(((device uint*)q_ptr) + ((((int)blockIdx.x) * 16) + (place[0] * 4)));
    pairs[0] = (as_type<half2>((words[0])[0]));
    pairs[1] = (as_type<half2>((words[0])[1]));
    pairs[2] = (as_type<half2>((words[0])[2]));
    pairs[3] = (as_type<half2>((words[0])[3]));
    queries[0] = (((float)(pairs[0])[0]) * scale[0]);
    queries[1] = (((float)(pairs[0])[1]) * scale[0]);
    queries[2] = (((float)(pairs[1])[0]) * scale[0]);
    queries[3] = (((float)(pairs[1])[1]) * scale[0]);
    queries[4] = (((float)(pairs[2])[0]) * scale[0]);
    queries[5] = (((float)(pairs[2])[1]) * scale[0]);
    queries[6] = (((float)(pairs[3])[0]) * scale[0]);
    queries[7] = (((float)(pairs[3])[1]) * scale[0]);
    words[0] = *(device uint4*)(((device uint*)q_ptr) + (((((int)blockIdx.x) * 16) + (place[0] * 4)) + 8));
    pairs_1[0] = (as_type<half2>((words[0])[0]));
    pairs_1[1] = (as_type<half2>((words[0])[1]));
    pairs_1[2] = (as_type<half2>((words[0])[2]));
    pairs_1[3] = (as_type<half2>((words[0])[3]));
    queries[8] = (((float)(pairs_1[0])[0]) * scale[0]);
    queries[9] = (((float)(pairs_1[0])[1]) * scale[0]);
    queries[10] = (((float)(pairs_1[1])[0]) * scale[0]);
    queries[11] = (((float)(pairs_1[1])[1]) * scale[0]);
    queries[12] = (((float)(pairs_1[2])[0]) * scale[0]);
    queries[13] = (((float)(pairs_1[2])[1]) * scale[0]);
    queries[14] = (((float)(pairs_1[3])[0]) * scale[0]);
    queries[15] = (((float)(pairs_1[3])[1]) * scale[0]);
    page_begin[0] = page_indptr_ptr[(((int)blockIdx.x) + arg.page_indptr_offset[0])];
    own_start[0] = ((key_warp[0] * 16) + start[0]);
    if (own_start[0] < share[0]) {
      page[0] = page_values_ptr[((page_begin[0] + (min(own_start[0], (share[0] - 1)) >> 4)) + arg.page_values_offset[0])];
    }
    for (int v = 0; v < (((share[0] + 31) - start[0]) / 32); ++v) {
      base[0] = ((v * 32) + own_start[0]);
      if (base[0] < share[0]) {
        key[0] = min((base[0] + slot[0]), (share[0] - 1));
        key[0] = ((page[0] * 64) + ((key[0] & 15) * 2));
        words_1[0] = *(device uint4*)(((device uint*)pages_ptr) + ((((long)key[0]) * (long)4) + (((long)place[0]) * (long)4)));
        words_2[0] = *(device uint4*)(((device uint*)pages_ptr) + (((((long)key[0]) * (long)4) + (((long)place[0]) * (long)4)) + (long)128));
        if ((base[0] + 32) < share[0]) {
          page[0] = page_values_ptr[((page_begin[0] + (min((base[0] + 32), (share[0] - 1)) >> 4)) + arg.page_values_offset[0])];
        }
        pairs_2[0] = (as_type<half2>((words_1[0])[0]));
        pairs_2[1] = (as_type<half2>((words_1[0])[1]));
        pairs_2[2] = (as_type<half2>((words_1[0])[2]));
        pairs_2[3] = (as_type<half2>((words_1[0])[3]));
        scores[0] = (queries[0] * ((float)(pairs_2[0])[0]));
        scores[0] = (scores[0] + (queries[1] * ((float)(pairs_2[0])[1])));
        scores[0] = (scores[0] + (queries[2] * ((float)(pairs_2[1])[0])));
        scores[0] = (scores[0] + (queries[3] * ((float)(pairs_2[1])[1])));
        scores[0] = (scores[0] + (queries[4] * ((float)(pairs_2[2])[0])));
        scores[0] = (scores[0] + (queries[5] * ((float)(pairs_2[2])[1])));
        scores[0] = (scores[0] + (queries[6] * ((float)(pairs_2[3])[0])));
        scores[0] = (scores[0] + (queries[7] * ((float)(pairs_2[3])[1])));
        scores[1] = (queries[8] * ((float)(pairs_2[0])[0]));
        scores[1] = (scores[1] + (queries[9] * ((float)(pairs_2[0])[1])));
        scores[1] = (scores[1] + (queries[10] * ((float)(pairs_2[1])[0])));
        scores[1] = (scores[1] + (queries[11] * ((float)(pairs_2[1])[1])));
        scores[1] = (scores[1] + (queries[12] * ((float)(pairs_2[2])[0])));
        scores[1] = (scores[1] + (queries[13] * ((float)(pairs_2[2])[1])));
        scores[1] = (scores[1] + (queries[14] * ((float)(pairs_2[3])[0])));
        scores[1] = (scores[1] + (queries[15] * ((float)(pairs_2[3])[1])));
        highest[0] = maximum[0];
        scores[0] = (scores[0] + simd_shuffle_xor(scores[0], (ushort)1));
        float condval_1;
        if ((base[0] + slot[0]) < share[0]) {
          condval_1 = scores[0];
        } else {
          condval_1 = -3.000000e+38f;
        }
        scores[0] = condval_1;
        highest[0] = max(highest[0], scores[0]);
        shrink[0] = exp2((maximum[0] - highest[0]));
        maximum[0] = highest[0];
        total[0] = (total[0] * shrink[0]);
        scores[0] = exp2((scores[0] - highest[0]));
        total[0] = (total[0] + scores[0]);
        sums[0] = (sums[0] * shrink[0]);
        sums[1] = (sums[1] * shrink[0]);
        sums[2] = (sums[2] * shrink[0]);
        sums[3] = (sums[3] * shrink[0]);
        sums[4] = (sums[4] * shrink[0]);
        sums[5] = (sums[5] * shrink[0]);
        sums[6] = (sums[6] * shrink[0]);
        sums[7] = (sums[7] * shrink[0]);
        highest_1[0] = maximum[1];
        scores[1] = (scores[1] + simd_shuffle_xor(scores[1], (ushort)1));
        float condval_2;
        if ((base[0] + slot[0]) < share[0]) {
          condval_2 = scores[1];
        } else {
          condval_2 = -3.000000e+38f;
        }
        scores[1] = condval_2;
        highest_1[0] = max(highest_1[0], scores[1]);
        shrink_1[0] = exp2((maximum[1] - highest_1[0]));
        maximum[1] = highest_1[0];
        total[1] = (total[1] * shrink_1[0]);
        scores[1] = exp2((scores[1] - highest_1[0]));
        total[1] = (total[1] + scores[1]);
        sums[8] = (sums[8] * shrink_1[0]);
        sums[9] = (sums[9] * shrink_1[0]);
        sums[10] = (sums[10] * shrink_1[0]);
        sums[11] = (sums[11] * shrink_1[0]);
        sums[12] = (sums[12] * shrink_1[0]);
        sums[13] = (sums[13] * shrink_1[0]);
        sums[14] = (sums[14] * shrink_1[0]);
        sums[15] = (sums[15] * shrink_1[0]);
        pairs_3[0] = (as_type<half2>((words_2[0])[0]));
        pairs_3[1] = (as_type<half2>((words_2[0])[1]));
        pairs_3[2] = (as_type<half2>((words_2[0])[2]));
        pairs_3[3] = (as_type<half2>((words_2[0])[3]));
        sums[0] = (sums[0] + (scores[0] * ((float)(pairs_3[0])[0])));
        sums[1] = (sums[1] + (scores[0] * ((float)(pairs_3[0])[1])));
        sums[2] = (sums[2] + (scores[0] * ((float)(pairs_3[1])[0])));
        sums[3] = (sums[3] + (scores[0] * ((float)(pairs_3[1])[1])));
        sums[4] = (sums[4] + (scores[0] * ((float)(pairs_3[2])[0])));
        sums[5] = (sums[5] + (scores[0] * ((float)(pairs_3[2])[1])));
        sums[6] = (sums[6] + (scores[0] * ((float)(pairs_3[3])[0])));
        sums[7] = (sums[7] + (scores[0] * ((float)(pairs_3[3])[1])));
        sums[8] = (sums[8] + (scores[1] * ((float)(pairs_3[0])[0])));
        sums[9] = (sums[9] + (scores[1] * ((float)(pairs_3[0])[1])));
        sums[10] = (sums[10] + (scores[1] * ((float)(pairs_3[1])[0])));
        sums[11] = (sums[11] + (scores[1] * ((float)(pairs_3[1])[1])));
        sums[12] = (sums[12] + (scores[1] * ((float)(pairs_3[2])[0])));
        sums[13] = (sums[13] + (scores[1] * ((float)(pairs_3[2])[1])));
        sums[14] = (sums[14] + (scores[1] * ((float)(pairs_3[3])[0])));
        sums[15] = (sums[15] + (scores[1] * ((float)(pairs_3[3])[1])));
      }
    }
    other[0] = simd_shuffle_xor(maximum[0], (ushort)2);
    both[0] = max(maximum[0], other[0]);
    own_weight[0] = exp2((maximum[0] - both[0]));
    other[0] = exp2((other[0] - both[0]));
    maximum[0] = both[0];
    total[0] = ((total[0] * own_weight[0]) + (simd_shuffle_xor(total[0], (ushort)2) * other[0]));
    sums[0] = ((sums[0] * own_weight[0]) + (simd_shuffle_xor(sums[0], (ushort)2) * other[0]));
    sums[1] = ((sums[1] * own_weight[0]) + (simd_shuffle_xor(sums[1], (ushort)2) * other[0]));
    sums[2] = ((sums[2] * own_weight[0]) + (simd_shuffle_xor(sums[2], (ushort)2) * other[0]));
    sums[3] = ((sums[3] * own_weight[0]) + (simd_shuffle_xor(sums[3], (ushort)2) * other[0]));
    sums[4] = ((sums[4] * own_weight[0]) + (simd_shuffle_xor(sums[4], (ushort)2) * other[0]));
    sums[5] = ((sums[5] * own_weight[0]) + (simd_shuffle_xor(sums[5], (ushort)2) * other[0]));
    sums[6] = ((sums[6] * own_weight[0]) + (simd_shuffle_xor(sums[6], (ushort)2) * other[0]));
    sums[7] = ((sums[7] * own_weight[0]) + (simd_shuffle_xor(sums[7], (ushort)2) * other[0]));
    other_1[0] = simd_shuffle_xor(maximum[1], (ushort)2);
    both_1[0] = max(maximum[1], other_1[0]);
    own_weight_1[0] = exp2((maximum[1] - both_1[0]));
    other_1[0] = exp2((other_1[0] - both_1[0]));
    maximum[1] = both_1[0];
    total[1] = ((total[1] * own_weight_1[0]) + (simd_shuffle_xor(total[1], (ushort)2) * other_1[0]));
    sums[8] = ((sums[8] * own_weight_1[0]) + (simd_shuffle_xor(sums[8], (ushort)2) * other_1[0]));
    sums[9] = ((sums[9] * own_weight_1[0]) + (simd_shuffle_xor(sums[9], (ushort)2) * other_1[0]));
    sums[10] = ((sums[10] * own_weight_1[0]) + (simd_shuffle_xor(sums[10], (ushort)2) * other_1[0]));
    sums[11] = ((sums[11] * own_weight_1[0]) + (simd_shuffle_xor(sums[11], (ushort)2) * other_1[0]));
    sums[12] = ((sums[12] * own_weight_1[0]) + (simd_shuffle_xor(sums[12], (ushort)2) * other_1[0]));
    sums[13] = ((sums[13] * own_weight_1[0]) + (simd_shuffle_xor(sums[13], (ushort)2) * other_1[0]));
    sums[14] = ((sums[14] * own_weight_1[0]) + (simd_shuffle_xor(sums[14], (ushort)2) * other_1[0]));
    sums[15] = ((sums[15] * own_weight_1[0]) + (simd_shuffle_xor(sums[15], (ushort)2) * other_1[0]));
    other_2[0] = simd_shuffle_xor(maximum[0], (ushort)4);
    both_2[0] = max(maximum[0], other_2[0]);
    own_weight_2[0] = exp2((maximum[0] - both_2[0]));
    other_2[0] = exp2((other_2[0] - both_2[0]));
    maximum[0] = both_2[0];
    total[0] = ((total[0] * own_weight_2[0]) + (simd_shuffle_xor(total[0], (ushort)4) * other_2[0]));
    sums[0] = ((sums[0] * own_weight_2[0]) + (simd_shuffle_xor(sums[0], (ushort)4) * other_2[0]));
    sums[1] = ((sums[1] * own_weight_2[0]) + (simd_shuffle_xor(sums[1], (ushort)4) * other_2[0]));
    sums[2] = ((sums[2] * own_weight_2[0]) + (simd_shuffle_xor(sums[2], (ushort)4) * other_2[0]));
    sums[3] = ((sums[3] * own_weight_2[0]) + (simd_shuffle_xor(sums[3], (ushort)4) * other_2[0]));
    sums[4] = ((sums[4] * own_weight_2[0]) + (simd_shuffle_xor(sums[4], (ushort)4) * other_2[0]));
    sums[5] = ((sums[5] * own_weight_2[0]) + (simd_shuffle_xor(sums[5], (ushort)4) * other_2[0]));
    sums[6] = ((sums[6] * own_weight_2[0]) + (simd_shuffle_xor(sums[6], (ushort)4) * other_2[0]));
    sums[7] = ((sums[7] * own_weight_2[0]) + (simd_shuffle_xor(sums[7], (ushort)4) * other_2[0]));
    other_3[0] = simd_shuffle_xor(maximum[1], (ushort)4);
    both_3[0] = max(maximum[1], other_3[0]);
    own_weight_3[0] = exp2((maximum[1] - both_3[0]));
    other_3[0] = exp2((other_3[0] - both_3[0]));
    maximum[1] = both_3[0];
    total[1] = ((total[1] * own_weight_3[0]) + (simd_shuffle_xor(total[1], (ushort)4) * other_3[0]));
    sums[8] = ((sums[8] * own_weight_3[0]) + (simd_shuffle_xor(sums[8], (ushort)4) * other_3[0]));
    sums[9] = ((sums[9] * own_weight_3[0]) + (simd_shuffle_xor(sums[9], (ushort)4) * other_3[0]));
    sums[10] = ((sums[10] * own_weight_3[0]) + (simd_shuffle_xor(sums[10], (ushort)4) * other_3[0]));
    sums[11] = ((sums[11] * own_weight_3[0]) + (simd_shuffle_xor(sums[11], (ushort)4) * other_3[0]));
    sums[12] = ((sums[12] * own_weight_3[0]) + (simd_shuffle_xor(sums[12], (ushort)4) * other_3[0]));
    sums[13] = ((sums[13] * own_weight_3[0]) + (simd_shuffle_xor(sums[13], (ushort)4) * other_3[0]));
    sums[14] = ((sums[14] * own_weight_3[0]) + (simd_shuffle_xor(sums[14], (ushort)4) * other_3[0]));
    sums[15] = ((sums[15] * own_weight_3[0]) + (simd_shuffle_xor(sums[15], (ushort)4) * other_3[0]));
    other_4[0] = simd_shuffle_xor(maximum[0], (ushort)8);
    both_4[0] = max(maximum[0], other_4[0]);
    own_weight_4[0] = exp2((maximum[0] - both_4[0]));
    other_4[0] = exp2((other_4[0] - both_4[0]));
    maximum[0] = both_4[0];
    total[0] = ((total[0] * own_weight_4[0]) + (simd_shuffle_xor(total[0], (ushort)8) * other_4[0]));
    sums[0] = ((sums[0] * own_weight_4[0]) + (simd_shuffle_xor(sums[0], (ushort)8) * other_4[0]));
    sums[1] = ((sums[1] * own_weight_4[0]) + (simd_shuffle_xor(sums[1], (ushort)8) * other_4[0]));
    sums[2] = ((sums[2] * own_weight_4[0]) + (simd_shuffle_xor(sums[2], (ushort)8) * other_4[0]));
    sums[3] = ((sums[3] * own_weight_4[0]) + (simd_shuffle_xor(sums[3], (ushort)8) * other_4[0]));
    sums[4] = ((sums[4] * own_weight_4[0]) + (simd_shuffle_xor(sums[4], (ushort)8) * other_4[0]));
    sums[5] = ((sums[5] * own_weight_4[0]) + (simd_shuffle_xor(sums[5], (ushort)8) * other_4[0]));
    sums[6] = ((sums[6] * own_weight_4[0]) + (simd_shuffle_xor(sums[6], (ushort)8) * other_4[0]));
    sums[7] = ((sums[7] * own_weight_4[0]) + (simd_shuffle_xor(sums[7], (ushort)8) * other_4[0]));
    other_5[0] = simd_shuffle_xor(maximum[1], (ushort)8);
    both_5[0] = max(maximum[1], other_5[0]);
    own_weight_5[0] = exp2((maximum[1] - both_5[0]));
    other_5[0] = exp2((other_5[0] - both_5[0]));
    maximum[1] = both_5[0];
    total[1] = ((total[1] * own_weight_5[0]) + (simd_shuffle_xor(total[1], (ushort)8) * other_5[0]));
    sums[8] = ((sums[8] * own_weight_5[0]) + (simd_shuffle_xor(sums[8], (ushort)8) * other_5[0]));
    sums[9] = ((sums[9] * own_weight_5[0]) + (simd_shuffle_xor(sums[9], (ushort)8) * other_5[0]));
    sums[10] = ((sums[10] * own_weight_5[0]) + (simd_shuffle_xor(sums[10], (ushort)8) * other_5[0]));
    sums[11] = ((sums[11] * own_weight_5[0]) + (simd_shuffle_xor(sums[11], (ushort)8) * other_5[0]));
    sums[12] = ((sums[12] * own_weight_5[0]) + (simd_shuffle_xor(sums[12], (ushort)8) * other_5[0]));
    sums[13] = ((sums[13] * own_weight_5[0]) + (simd_shuffle_xor(sums[13], (ushort)8) * other_5[0]));
    sums[14] = ((sums[14] * own_weight_5[0]) + (simd_shuffle_xor(sums[14], (ushort)8) * other_5[0]));
    sums[15] = ((sums[15] * own_weight_5[0]) + (simd_shuffle_xor(sums[15], (ushort)8) * other_5[0]));
    other_6[0] = simd_shuffle_xor(maximum[0], (ushort)16);
    both_6[0] = max(maximum[0], other_6[0]);
    own_weight_6[0] = exp2((maximum[0] - both_6[0]));
    other_6[0] = exp2((other_6[0] - both_6[0]));
    maximum[0] = both_6[0];
    total[0] = ((total[0] * own_weight_6[0]) + (simd_shuffle_xor(total[0], (ushort)16) * other_6[0]));
    sums[0] = ((sums[0] * own_weight_6[0]) + (simd_shuffle_xor(sums[0], (ushort)16) * other_6[0]));
    sums[1] = ((sums[1] * own_weight_6[0]) + (simd_shuffle_xor(sums[1], (ushort)16) * other_6[0]));
    sums[2] = ((sums[2] * own_weight_6[0]) + (simd_shuffle_xor(sums[2], (ushort)16) * other_6[0]));
    sums[3] = ((sums[3] * own_weight_6[0]) + (simd_shuffle_xor(sums[3], (ushort)16) * other_6[0]));
    sums[4] = ((sums[4] * own_weight_6[0]) + (simd_shuffle_xor(sums[4], (ushort)16) * other_6[0]));
    sums[5] = ((sums[5] * own_weight_6[0]) + (simd_shuffle_xor(sums[5], (ushort)16) * other_6[0]));
    sums[6] = ((sums[6] * own_weight_6[0]) + (simd_shuffle_xor(sums[6], (ushort)16) * other_6[0]));
    sums[7] = ((sums[7] * own_weight_6[0]) + (simd_shuffle_xor(sums[7], (ushort)16) * other_6[0]));
    other_7[0] = simd_shuffle_xor(maximum[1], (ushort)16);
    both_7[0] = max(maximum[1], other_7[0]);
    own_weight_7[0] = exp2((maximum[1] - both_7[0]));
    other_7[0] = exp2((other_7[0] - both_7[0]));
    maximum[1] = both_7[0];
    total[1] = ((total[1] * own_weight_7[0]) + (simd_shuffle_xor(total[1], (ushort)16) * other_7[0]));
    sums[8] = ((sums[8] * own_weight_7[0]) + (simd_shuffle_xor(sums[8], (ushort)16) * other_7[0]));
    sums[9] = ((sums[9] * own_weight_7[0]) + (simd_shuffle_xor(sums[9], (ushort)16) * other_7[0]));
    sums[10] = ((sums[10] * own_weight_7[0]) + (simd_shuffle_xor(sums[10], (ushort)16) * other_7[0]));
    sums[11] = ((sums[11] * own_weight_7[0]) + (simd_shuffle_xor(sums[11], (ushort)16) * other_7[0]));
    sums[12] = ((sums[12] * own_weight_7[0]) + (simd_shuffle_xor(sums[12], (ushort)16) * other_7[0]));
    sums[13] = ((sums[13] * own_weight_7[0]) + (simd_shuffle_xor(sums[13], (ushort)16) * other_7[0]));
    sums[14] = ((sums[14] * own_weight_7[0]) + (simd_shuffle_xor(sums[14], (ushort)16) * other_7[0]));
    sums[15] = ((sums[15] * own_weight_7[0]) + (simd_shuffle_xor(sums[15], (ushort)16) * other_7[0]));
    if (slot[0] == 0) {
      warp_sums[((key_warp[0] * 32) + (place[0] * 8))] = sums[0];
      warp_sums[(((key_warp[0] * 32) + (place[0] * 8)) + 1)] = sums[1];
      warp_sums[(((key_warp[0] * 32) + (place[0] * 8)) + 2)] = sums[2];
      warp_sums[(((key_warp[0] * 32) + (place[0] * 8)) + 3)] = sums[3];
      warp_sums[(((key_warp[0] * 32) + (place[0] * 8)) + 4)] = sums[4];
      warp_sums[(((key_warp[0] * 32) + (place[0] * 8)) + 5)] = sums[5];
      warp_sums[(((key_warp[0] * 32) + (place[0] * 8)) + 6)] = sums[6];
      warp_sums[(((key_warp[0] * 32) + (place[0] * 8)) + 7)] = sums[7];
      if (place[0] == 0) {
        warp_states[(key_warp[0] * 4)] = maximum[0];
        warp_states[((key_warp[0] * 4) + 1)] = total[0];
      }
    }
    if (slot[0] == 0) {
      warp_sums[(((key_warp[0] * 32) + (place[0] * 8)) + 16)] = sums[8];
      warp_sums[(((key_warp[0] * 32) + (place[0] * 8)) + 17)] = sums[9];
      warp_sums[(((key_warp[0] * 32) + (place[0] * 8)) + 18)] = sums[10];
      warp_sums[(((key_warp[0] * 32) + (place[0] * 8)) + 19)] = sums[11];
      warp_sums[(((key_warp[0] * 32) + (place[0] * 8)) + 20)] = sums[12];
      warp_sums[(((key_warp[0] * 32) + (place[0] * 8)) + 21)] = sums[13];
      warp_sums[(((key_warp[0] * 32) + (place[0] * 8)) + 22)] = sums[14];
      warp_sums[(((key_warp[0] * 32) + (place[0] * 8)) + 23)] = sums[15];
      if (place[0] == 0) {
        warp_states[((key_warp[0] * 4) + 2)] = maximum[1];
        warp_states[((key_warp[0] * 4) + 3)] = total[1];
      }
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    index[0] = ((int)threadIdx.x);
    if (index[0] < 32) {
      head[0] = (index[0] >> 4);
      feature[0] = (index[0] & 15);
      highest_2[0] = warp_states[(head[0] * 2)];
      highest_2[0] = max(highest_2[0], warp_states[((head[0] * 2) + 4)]);
      total_1[0] = 0.000000e+00f;
      value[0] = 0.000000e+00f;
      weight[0] = exp2((warp_states[(head[0] * 2)] - highest_2[0]));
      total_1[0] = (total_1[0] + (weight[0] * warp_states[((head[0] * 2) + 1)]));
      value[0] = (value[0] + (weight[0] * warp_sums[((head[0] * 16) + feature[0])]));
      weight_1[0] = exp2((warp_states[((head[0] * 2) + 4)] - highest_2[0]));
      total_1[0] = (total_1[0] + (weight_1[0] * warp_states[((head[0] * 2) + 5)]));
      value[0] = (value[0] + (weight_1[0] * warp_sums[(((head[0] * 16) + feature[0]) + 32)]));
      head[0] = ((((((int)blockIdx.x) * 2) + head[0]) * arg.cse_v3[0]) + ((int)blockIdx.z));
      split_sums_ptr[((head[0] * 16) + feature[0])] = value[0];
      if (feature[0] == 0) {
        split_states_ptr[(head[0] * 2)] = highest_2[0];
        split_states_ptr[((head[0] * 2) + 1)] = total_1[0];
      }
    }
  }
}


// Function: attend_kernel_1
#include <metal_stdlib>
using namespace metal;

union __TVMArgUnion {
 int v_int[2];
};

struct attend_kernel_1_args_t {
  int batch[2];
  int cse_v3[2];
  int last_page_length_offset[2];
  int page_indptr_offset[2];
};
