"""The time breakdown of a training step: the table of `python -m training.benchmark --profile`."""

import re
from types import SimpleNamespace

import pytest
from torch.autograd import DeviceType

from tests.conftest import TINY, flags
from training.benchmark import REST, lines, main, part_of, parts

NATIVE, APPLY = "void at::native::", "void at::native::(anonymous namespace)::multi_tensor_apply_kernel"
NAMES = {  # of kernels on an H200 and of operators on the host
    "matrix products": (
        "nvjet_tst_128x128_64x6_2x1_v_bz_splitK_NTN",
        "sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64_warpgroupsize1x1x1_execute_segment_k_off_kernel__5x_cublas",
        "void cublasLt::splitKreduce_kernel<32, 16, int, float, __nv_bfloat16, float, __nv_bfloat16, true, false>",
        "triton_tem_fused_addmm_gelu_3",
        "aten::addmm",
        "mkldnn::_linear_pointwise",
    ),
    "attention": (
        "void pytorch_flash::flash_bwd_dq_dk_dv_loop_seqk_parallel_kernel<Flash_bwd_kernel_traits<64, 128, 128, 8>>",
        "cudnn_generated_fort_native_sdpa_sm90_flash_bprop_wgmma_f16_knob_26_64x64x128_1x4x1_cga1x1x1_kernel0_0",
        "fmha_cutlassF_bf16_aligned_64x64_rf_sm80(PyTorchMemEffAttention::AttentionKernel<cutlass::bfloat16_t>::Params)",
        "aten::_scaled_dot_product_flash_attention_for_cpu_backward",
    ),
    "norms, elementwise": (
        "triton_poi_fused_addmm_gelu_gelu_backward_5",
        "triton_per_fused__scaled_dot_product_flash_attention_native_layer_norm_backward_addmm_2",
        f"{NATIVE}vectorized_elementwise_kernel<4, at::native::BinaryFunctor<float, float, float, MulFunctor<float>>>",
        f"{NATIVE}reduce_kernel<512, 1, at::native::ReduceOp<float, at::native::MeanOps<float, float>>>",
        "## Call CompiledFxGraph fdo7famlpm7t65ol6nv6j24ghs3lqjwrj4agqkchnyg5mefvn7tl ##",
        "aten::native_layer_norm_backward",
        "aten::gelu",
    ),
    "gradient norm, AdamW": (
        f"{APPLY}<FusedOptimizerTensorListMetadata<4>, FusedAdamMathFunctor<float, 4, (ADAM_MODE)1, false>>",
        f"{APPLY}<TensorListMetadata<1>, LpNormFunctor<float, (at::native::NormType)1, float, 1, 1, 0>>",
        f"{APPLY}<TensorListMetadata<1>, BinaryOpScalarTensorFunctor<float, 1, 1, 0>, std::multiplies<float>>",
        "aten::_foreach_norm",
        "Optimizer.step#AdamW.step",
    ),
    "EMA": (
        f"{APPLY}<TensorListMetadata<2>, TernaryOpScalarFunctor<float, 2, 2, 0>, LerpFunctor<float>>",
        "aten::_foreach_lerp_",
    ),
    "random numbers, indexing": (
        f"{NATIVE}(anonymous namespace)::distribution_elementwise_grid_stride_kernel<float, 4, normal_and_transform>",
        f"{NATIVE}vectorized_gather_kernel<16, long>(char*, char*, long*, int, long, long, long, long, bool)",
        f"{NATIVE}(anonymous namespace)::indexSelectLargeIndex<float, long, unsigned int, 2, 2, -2, true>",
        "aten::randn",
        "aten::embedding_dense_backward",
    ),
    "copies": (
        "Memcpy DtoD (Device -> Device)",
        f"{NATIVE}unrolled_elementwise_kernel<at::native::direct_copy_kernel_cuda(at::TensorIteratorBase&)>",
        f"{NATIVE}vectorized_elementwise_kernel<4, at::native::FillFunctor<float>, std::array<char*, 1>>",
        "aten::copy_",
    ),
    "autograd, torch.compile, launches": (
        "cudaGraphLaunch",
        "cuLaunchKernelEx",
        "CompiledFunctionBackward",
        "Torch-Compiled Region: 0/0",
        "autograd::engine::evaluate_function: torch::autograd::AccumulateGrad",
    ),
    "waiting for the device": ("cudaStreamSynchronize",),
    REST: ("aten::as_strided", "aten::empty"),
}


@pytest.mark.parametrize("part", NAMES)
def test_every_kernel_belongs_to_its_part(part):
    assert {name: part_of(name) for name in NAMES[part]} == dict.fromkeys(NAMES[part], part)


def test_host_and_device_are_counted_apart_and_per_step():
    """Two steps in 10 ms; a kernel is a separate event from its operator, and a span of kernels is not counted."""

    def event(key, device, count, host, kernels, span=False):
        return SimpleNamespace(
            key=key,
            device_type=device,
            count=count,
            self_cpu_time_total=host,  # µs
            self_device_time_total=kernels,  # µs; an operator includes its kernels
            is_user_annotation=span,
        )

    table = parts(
        [
            event("aten::mm", DeviceType.CPU, 6, 3000, 800),
            event("nvjet_tst_64x64_64x8_2x1_v_bz_TNT", DeviceType.CUDA, 4, 0, 500),
            event("void cublasLt::splitKreduce_kernel<32>", DeviceType.CUDA, 2, 0, 300),
            event("Optimizer.step#AdamW.step", DeviceType.CPU, 2, 1000, 0, span=True),
            event("Optimizer.step#AdamW.step", DeviceType.CUDA, 2, 0, 900, span=True),
            event("aten::view", DeviceType.CPU, 10, 200, 0),
        ],
        steps=2,
        seconds=0.01,
    )
    found = {part: row for part, row in table.items() if any(row)}
    assert found.keys() == {"matrix products", "gradient norm, AdamW", REST}
    assert found["matrix products"] == pytest.approx([3, 1.5, 3, 0.4])
    assert found["gradient norm, AdamW"] == pytest.approx([1, 0.5, 0, 0])
    assert found[REST] == pytest.approx([5, 3.0, 0, 0])  # the rest of 5 ms after the host's operators
    assert lines(table) == [
        "| part of a step | calls | host, ms | kernels | device, ms |",
        "| --- | ---: | ---: | ---: | ---: |",
        "| matrix products | 3 | 1.50 | 3 | 0.40 |",
        "| gradient norm, AdamW | 1 | 0.50 | 0 | 0.00 |",
        "| Python and the rest | 5 | 3.00 | 0 | 0.00 |",
    ]


def test_profile_of_a_small_run(root, capsys):
    assert main(["--profile", "--seconds=0.1", *flags({**TINY, "data_root": root})]) == 0
    _, table, summary = capsys.readouterr().out.split("\n\n")
    rows = {
        part: (int(calls), float(ms)) for part, calls, ms in re.findall(r"\| (.+) \| (\d+) \| (\d+\.\d\d) \|", table)
    }
    assert list(rows) == [part for part in rows if part in NAMES]
    assert rows["EMA"][0] >= 1
    assert {"matrix products", "attention", "gradient norm, AdamW", "random numbers, indexing"} <= rows.keys()
    measured = float(re.search(r"or ([\d.]+) ms under the profiler\.\n", summary)[1])
    assert sum(ms for _, ms in rows.values()) == pytest.approx(measured, abs=0.005 * (len(rows) + 1))
