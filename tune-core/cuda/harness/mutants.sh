#!/bin/sh
# Plants mistakes in copies of the kernels and sees that the tests catch each: harness/mutants.sh [number ...], in the folder of
# this crate. A mistake is a kernel's file, a test, and a replacement that sed makes; one that nothing catches fails.
set -eu
cd "$(dirname "$0")/.."
out=${OUT_DIR:-$(mktemp -d)}
list='
common.cuh|norm|s/    __syncthreads();\n    x = mine/    x = mine/|no barrier before the warps of a row come together
common.cuh|loss|s/x = join(x, mine\[i\])/x = mine[0]/|the maximum of one warp alone
common.cuh|norm|s/blockDim.x) \/ 2; with > 0/blockDim.x) \/ 2; with > 1/|a sum over half of a warp
norm.cu|norm|s/if (i < width) f/if (i <= width) f/|one piece too many in a row
norm.cu|norm|s/part < blockDim.y/part + 1 < blockDim.y/|a part of the weight s gradient is left out
norm.cu|norm|s/    __syncthreads();\n    for (int i = threadIdx.y/    for (int i = threadIdx.y/|no barrier before the parts are summed
loss.cu|loss|s/if (((s + 2) \& (s + 1)) == 0) __syncthreads();/;/|the gradient overwrites logits that are still to be read
loss.cu|loss|s/    if (!gradient) return;\n    __syncthreads();/    if (!gradient) return;/|the target s logit is overwritten before it is read
loss.cu|loss|s/i + j == target/i + j + 1 == target/|the target is off by one
rows.cu|rows|s/at < end; at++/at + 1 < end; at++/|the last row of an id is left out
dropout.cu|dropout|s/first + i + j/first + i/|elements share their fate
experts.cu|experts|s/token \* chosen + k/token + k * tokens/|the places of another token
optim.cuh|optim|s/(random \& 0xffffu)/0x8000u/|rounded to the nearest instead of at random
optim.cu|optim|s/at + N <= piece.count/at + N < piece.count/|the last element of a piece is left out
rotary.cu|rotary|s/y \* c\[i\] + x \* turned/y * c[i] - x * turned/|a wrong sign
gate.cu|gate|s/s + x \* s \* (1.0f - s)/s + x * s * (1.0f + s)/|a wrong slope
attention_plain.cu|attention_plain|s/        __syncthreads();\n        bring(keys/        bring(keys/|keys are overwritten while others read them
attention.cuh|attention_plain|s/key <= query/key < query/|the diagonal is hidden
attention.cuh|attention_forward|s/query - key < look.window/query - key <= look.window/|a window that is one too wide
attention_forward.cu|attention_forward|s/copy_async_wait<0>();\n        __syncthreads();/__syncthreads();/|nobody waits for the copies
attention_forward.cu|attention_forward|s/copy_async_wait<0>();\n        __syncthreads();/copy_async_wait<0>();/|no barrier after the copies
attention_rows.cuh|attention_forward|s/larger, 2));/larger, 1));/|the maximum of a half of the row
attention_forward.cu|attention_forward|s/sums\[m\]\[n\]\[i\] \*= keep\[i \/ 2\]/sums[m][n][i] *= keep[i % 2]/|rows are mixed up
attention_backward.cu|attention_backward|s/step \/ steps; }/step % f.group; }/|queries of the wrong head
attention_backward.cu|attention_backward|s/(step + 1) % 2 \* 2 \* QUERIES/step % 2 * 2 * QUERIES/|numbers of the next stage overwrite those of this one
attention_tiles.cuh|attention_backward|s/lane \/ 8 % 2 \* 8/lane \/ 16 * 8/|fragments of the wrong columns
attention_panels.cuh|attention_forward_sm90a|s/(piece ^ first) \& 7/piece \& 7/|pieces are not swizzled
attention_forward_sm90a.cu|attention_forward_sm90a|s/warpgroup_wait<1>();/warpgroup_wait<2>();/|scores are used before they are there
attention_forward_sm90a.cu|attention_forward_sm90a|s/        ring.wait_free(step);\n//|tiles are overwritten while others read them
attention_forward_sm90a.cu|attention_forward_sm90a|s/        copy_async_wait<0>();\n        show/        show/|a place is called full before it is
attention_decode.cu|attention_decode|s/    __syncthreads();\n    for (int i = threadIdx.x/    for (int i = threadIdx.x/|no barrier before the parts of warps are joined
columns.cu|columns|s/blockIdx.y \* cols + i/i/|parts of a sum overwrite each other
columns.cu|columns|s/own += with_itself/own = with_itself/|the last column of a product alone
distillation.cu|distillation|s/if constexpr (sizeof(Out) < sizeof(float)) __syncthreads();//|the gradient overwrites logits that are still to be read
distillation.cu|distillation|s/sum \*= keep, apart \*= keep/sum *= keep/|products under another maximum
distillation.cu|distillation|s/further - to_student/further/|a reverse divergence whose gradient has a mean
attention_backward_sm90a.cu|attention_backward_sm90a|s/warpgroup_wait<1>();\n#pragma unroll/warpgroup_wait<2>();\n#pragma unroll/|a product is used before it is there
dequantize.cu|dequantize|s/__fdiv_rn(static_cast<float>(of.scales\[number\]), of.factors\[number \/ 256\])/__fmul_rn(static_cast<float>(of.scales[number]), __fdiv_rn(1.0f, of.factors[number \/ 256]))/|a reciprocal in place of a quotient
dequantize.cu|dequantize|s/at + OWN <= cols/at < cols/|a piece that does not end with its row
dequantize.cu|dequantize|s/        __syncthreads();\n        of.values/        of.values/|no barrier before what codes name is there
rows.cu|rows|s/y < blockDim.y; y++/y + 1 < blockDim.y; y++/|rows of a part are left out
loss.cu|loss|s/if (((s + 2) \& (s + 1)) == 0) __syncthreads();/if (s == 0) __syncthreads();/|the gradient overtakes those who still read logits
attention_backward_sm90a.cu|attention_backward_sm90a|s/part < parts; part++/part + 1 < parts; part++/|a part of the query heads is left out
loss.cu|loss|s/of_target = 1.0f - beside.smoothing/of_target = 1.0f/|the share of a smoothed label is still its own
loss.cu|loss|s/1.0f + 2.0f \* beside.z/1.0f + beside.z/|half the slope of a square
distillation.cu|distillation|s/if (known.ids\[i\] == target) g -= of_target;//|a known target counts as any other
distillation.cu|distillation|s/    __syncthreads();\n    for (long long i = threadIdx.x; i < known.k; i += blockDim.x) student/    for (long long i = threadIdx.x; i < known.k; i += blockDim.x) student/|a target is taken out of its row before all have read it
optim.cu|optim|s/direction > 0 ? lr/direction >= 0 ? lr/|zero has a sign
general_distillation.cu|general_distillation|s/(by.student - of_student)/by.student/|a divergence from the middle whose gradient has a mean
general_distillation.cu|general_distillation|s/if constexpr (sizeof(Out) < sizeof(float)) __syncthreads();//|the gradient overwrites logits that are still to be read
general_distillation.cu|general_distillation|s/tempered \*= __expf(factor \* (most - larger))/tempered *= __expf(most - larger)/|a tempered sum under another maximum
optim_means.cu|optim_means|s/load(third/load(p.second/|another state in the place of the mean
optim_means.cu|optim_means|s/p.first ? plus/true ? plus/|a mean that nobody keeps
optim_8bit.cu|optim_8bit|s/ends\[code + step - 1\] <= x/ends[code + step - 1] < x/|a number on the border has the lower code
optim_8bit.cu|optim_8bit|s/most_first = warp_max(most_first)/most_first = most_first/|the largest number of a lane alone
token_columns.cu|token_columns|s/        \*from = from_f32<T>(0.0f);\n//|what was taken is there still
token_columns.cu|token_columns|s/y\[row \* stride + columns\[i\]\]/y[row * count + columns[i]]/|rows without the gap between them
fake_quant.cu|fake_quant|s/q < first ? first : q > last ? last : q/fminf(fmaxf(q, first), last)/|what is no number becomes one
fake_quant.cu|fake_quant|s/q <= Grid::LAST ? g/q < Grid::LAST ? g/|the outermost level has no gradient
fake_quant.cu|fake_quant|s/of.largest = warp_max(of.largest)/of.largest = of.largest/|the largest number of a lane alone
fake_quant.cu|fake_quant|s/i < size; i += 32 \* N/i + N < size; i += 32 * N/g|the last numbers of a group are left out
fake_quant.cu|fake_quant|s/if (onto) gradients/if (false) gradients/|what is beside the gradient is left out
common.cuh|fake_quant|s/    __syncthreads();\n    x = mine/    x = mine/|no barrier before the warps of a token come together
fake_blocks.cu|fake_blocks|s/__ffs(static_cast<int>(those)) - 1/31 - __builtin_clz(those)/|the last of several that are as far
fake_blocks.cu|fake_blocks|s/with = 4; with > 0/with = 4; with > 1/|the largest of a half of a block
fake_blocks.cu|fake_blocks|s/step <= steps/step < steps/|the last scale is not tried
fake_blocks.cu|fake_blocks|s/fabsf(other) > fabsf(far)/fabsf(other) >= fabsf(far)/|the last of several scales that are as far
fake_blocks.cu|fake_blocks|s/size + 0xfffu + /size + 0x1000u + 0 * /|halves are rounded away from zero
fake_blocks.cu|fake_blocks|s/if (left < best) best = left, scale = of_trial, least = offset;/if (left < best) best = left, scale = of_trial;/|the offset of another scale
top_middle.cu|top_middle|s/.student - to_student)/.student)/|a divergence from the middle whose gradient has a mean
top_middle.cu|top_middle|s/if constexpr (sizeof(Out) < sizeof(float)) __syncthreads();//|the gradient overwrites logits that are still to be read
top_middle.cu|top_middle|s/    __syncthreads();\n    for (long long i = threadIdx.x; i < known.k; i += blockDim.x) student/    for (long long i = threadIdx.x; i < known.k; i += blockDim.x) student/|a target is taken out of its row before all have read it
top_middle.cu|top_middle|s/if (has_rest) mixture.add/if (false) mixture.add/|all other tokens have no part in the divergence
top_middle.cu|top_middle|s/expm1f(-apart)/expm1f(apart)/|the wrong one of both is the larger
top_middle.cu|top_middle|s/row_sum(total, shared)/total/|the sum of a thread alone
routes.cu|routes|s/other < last \&\& other/other <= last \&\& other/|the same expert again and again
routes.cu|routes|s/(0xffffffffu - expert)/expert/|of equal ones the last
routes.cu|routes|s/__float_as_uint(logit + 0.0f)/__float_as_uint(logit)/|0 is more than -0
routes.cu|routes|s/if (i < warp) place/if (i <= warp) place/|the places of the next warp
routes.cu|routes|s/        __syncthreads();\n        unsigned place/        unsigned place/|no barrier before counts are read
routes.cu|routes|s/i < choices \&\& experts/i + 1 < choices \&\& experts/|the last choice has no place
routes.cu|routes|s/* (q - below)/* q/|a gradient with a mean
grouped.cu|grouped|s/if (lane >= by) behind/if (lane > by) behind/|rows of the wrong expert
grouped.cu|grouped|s/    __syncthreads();\n    for (int i = threadIdx.x/    for (int i = threadIdx.x/|no barrier before the warps of a block come together
grouped.cu|grouped|s/next = at + i < k/next = at + i + 1 < k/|the last number of a row is left out
grouped.cu|grouped|s/{upper.x, lower.x, upper.y, lower.y}/{upper.x, upper.y, lower.x, lower.y}/|fragments of the wrong rows
grouped.cu|grouped|s/        if (of.out + out >= of.n) continue;\n//|results that there are not overwrite those of the next row
grouped.cu|grouped|s/i = of_adapter.w ? 0 : 1/i = 1/|what an adapter adds is left out
grouped.cu|grouped|s/begin += 64 \* WARPS/begin += 64 * WARPS + 64/|pieces of a row are left out
sample.cu|sample|s/shared->codes\[other\] < mine/shared->codes[other] <= mine/|a token comes before itself
sample.cu|sample|s/\& known) == digits/\& known) != 0/|tokens of other digits are counted
sample.cu|sample|s/found.mass += shared->mass/found.mass = shared->mass/|the mass before a bin is forgotten
sample.cu|sample|s/        __syncthreads();\n        found.token/        found.token/|no barrier before the token is read
sample.cu|sample|s/own = target.by_count ? 1 : weight/own = weight/|a token counts as much as it weighs
sample.cu|sample|s/enough - 1, false/enough, false/|a part of the mass that is reached is not enough
sample.cu|sample|s/? bits : ~bits \& 0x7fffffffu/? ~bits | 0x80000000u : ~bits \& 0x7fffffffu/|negative logits in the wrong order
sample.cu|sample|s/(unsigned)__popc(those)/1u/|tokens of one bin count as one
'
wanted=" $* "
number=0
survivors=0
IFS='
'
for line in $list; do
    number=$((number + 1))
    [ "$wanted" = "  " ] || case "$wanted" in *" $number "*) ;; *) continue ;; esac
    file=${line%%|*} rest=${line#*|}
    test=${rest%%|*} rest=${rest#*|}
    change=${rest%|*} what=${rest##*|}
    rm -rf "$out/mutant"
    mkdir -p "$out/mutant"
    cp -r kernels harness "$out/mutant"
    sed -z "$change" "kernels/$file" >"$out/mutant/kernels/$file"
    if cmp -s "kernels/$file" "$out/mutant/kernels/$file"; then
        echo "mutant $number ($file: $what): nothing to replace; the kernel has changed, so must the mutant"
        survivors=$((survivors + 1))
    elif OUT_DIR="$out" timeout 300 sh "$out/mutant/harness/run.sh" "$test" >"$out/mutant.log" 2>&1; then
        echo "mutant $number ($file: $what): NOT CAUGHT by $test"
        survivors=$((survivors + 1))
    elif grep -q ' error: ' "$out/mutant.log"; then
        echo "mutant $number ($file: $what): does not compile"
        grep ' error: ' "$out/mutant.log" | head -2
        survivors=$((survivors + 1))
    else
        echo "mutant $number ($file: $what): caught: $(grep -v '^==' "$out/mutant.log" | head -1 | cut -c 1-90)"
    fi
done
[ $survivors = 0 ]
