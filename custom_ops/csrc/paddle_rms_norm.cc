// RMSNorm as an operator of Paddle, with its gradient: tensors in, tensors out; the arithmetic is behind rms_norm.h.
//
// pllm_rms_norm: X [..., hidden], Weight [hidden] -> Y like X, Invvar [...] fp32. No gradient passes through Invvar.
#include <string>
#include <vector>

#include "paddle/phi/api/all.h"
#include "rms_norm.h"

namespace {

using paddle::DataType;
using paddle::Tensor;

int type_of(const Tensor& tensor) {
  switch (tensor.dtype()) {
    case DataType::FLOAT32: return PLLM_FLOAT32;
    case DataType::FLOAT16: return PLLM_FLOAT16;
    case DataType::BFLOAT16: return PLLM_BFLOAT16;
    default: PD_THROW("RMSNorm: ", tensor.dtype(), " is not supported. Use fp32, fp16 or bf16.");
  }
}

// The kernels take rows at any distance, but a view may be anything.
Tensor in_rows(const Tensor& tensor) { return tensor.is_contiguous() ? tensor : tensor.contiguous(); }

// Undefined where nothing but Invvar was used.
Tensor gradient_like(const Tensor& x, const Tensor& dy) {
  if (!dy.initialized()) return paddle::zeros(x.shape(), x.dtype(), x.place());
  PD_CHECK(dy.shape() == x.shape() && dy.dtype() == x.dtype() && dy.place() == x.place(),
           "RMSNorm: the gradient of y has another shape, type or device than y");
  return in_rows(dy);
}

pllm_rms_norm_shape shape_of(const Tensor& x, const Tensor& weight, float epsilon, int rounding) {
  const int64_t hidden = weight.numel();
  PD_CHECK(!x.shape().empty() && x.shape().back() == hidden && hidden > 0,
           "RMSNorm: the shapes do not match: weight has ", hidden,
           " elements. Use x [..., hidden] and weight [hidden], with a hidden size of 1 or more.");
  PD_CHECK(x.place() == weight.place(), "RMSNorm: x is on ", x.place(), ", but weight is on ", weight.place(), ". Move them to one device.");
  return {x.numel() / hidden, hidden, epsilon, type_of(x), type_of(weight), rounding};
}

#ifdef PADDLE_WITH_CUDA
void check_cuda(int code) { PD_CHECK(code == PLLM_OK, "RMSNorm on the GPU: ", pllm_rms_norm_message_cuda(code)); }
#endif
void check(int code) { PD_CHECK(code == PLLM_OK, "RMSNorm: ", pllm_rms_norm_message(code)); }

std::vector<Tensor> forward(const Tensor& x_any, const Tensor& weight_any, float epsilon, int rounding, bool) {
  const Tensor x = in_rows(x_any), weight = in_rows(weight_any);
  const pllm_rms_norm_shape shape = shape_of(x, weight, epsilon, rounding);
  std::vector<int64_t> rows = x.shape();
  rows.pop_back();
  Tensor y = paddle::empty(x.shape(), x.dtype(), x.place());
  Tensor invvar = paddle::empty(rows, DataType::FLOAT32, x.place());

  pllm_rms_norm_forward args{};
  args.shape = shape;
  args.x = x.data();
  args.weight = weight.data();
  args.y = y.data();
  args.invvar = static_cast<float*>(invvar.data());
  args.x_stride = args.y_stride = shape.hidden;
#ifdef PADDLE_WITH_CUDA
  if (x.is_gpu()) {
    check_cuda(pllm_rms_norm_forward_cuda(&args, x.stream()));
    return {y, invvar};
  }
#endif
  PD_CHECK(x.is_cpu(), "RMSNorm: this build has no CUDA kernels. Move the tensors to the CPU, or install nvcc and build again.");
  check(pllm_rms_norm_forward_cpu(&args, nullptr));
  return {y, invvar};
}

// A frozen weight (weight_gradient false) costs nothing, and its gradient is zero.
std::vector<Tensor> backward(const Tensor& dy_any, const Tensor& x_any, const Tensor& weight_any, const Tensor& invvar,
                             float epsilon, int rounding, bool weight_gradient) {
  const Tensor x = in_rows(x_any), weight = in_rows(weight_any);
  const pllm_rms_norm_shape shape = shape_of(x, weight, epsilon, rounding);
  const Tensor dy = gradient_like(x, dy_any);
  Tensor dx = paddle::empty(x.shape(), x.dtype(), x.place());
  Tensor dweight = weight_gradient ? paddle::empty(weight.shape(), weight.dtype(), x.place())
                                   : paddle::zeros(weight.shape(), weight.dtype(), x.place());

  pllm_rms_norm_backward args{};
  args.shape = shape;
  args.dy = dy.data();
  args.x = x.data();
  args.weight = weight.data();
  args.invvar = static_cast<const float*>(invvar.data());
  args.dx = dx.data();
  args.dweight = weight_gradient ? dweight.data() : nullptr;
  args.dy_stride = args.x_stride = args.dx_stride = shape.hidden;
  Tensor workspace;
  const auto provide = [&](int64_t size) {
    args.workspace_size = size;
    if (size == 0) return;
    workspace = paddle::empty({size}, DataType::UINT8, x.place());
    args.workspace = workspace.data();
  };
#ifdef PADDLE_WITH_CUDA
  if (x.is_gpu()) {
    const int64_t size = pllm_rms_norm_workspace_cuda(&shape, weight_gradient);
    check_cuda(size < 0 ? static_cast<int>(-size) : PLLM_OK);
    provide(size);
    check_cuda(pllm_rms_norm_backward_cuda(&args, x.stream()));
    return {dx, dweight};
  }
#endif
  PD_CHECK(x.is_cpu(), "RMSNorm: this build has no CUDA kernels. Move the tensors to the CPU, or install nvcc and build again.");
  const int64_t size = pllm_rms_norm_workspace_cpu(&shape, weight_gradient);
  check(size < 0 ? static_cast<int>(-size) : PLLM_OK);
  provide(size);
  check(pllm_rms_norm_backward_cpu(&args, nullptr));
  return {dx, dweight};
}

using Shape = std::vector<int64_t>;

std::vector<Shape> forward_shapes(Shape x, Shape) { return {x, Shape(x.begin(), x.empty() ? x.end() : x.end() - 1)}; }
std::vector<DataType> forward_types(DataType x, DataType) { return {x, DataType::FLOAT32}; }
std::vector<Shape> backward_shapes(Shape, Shape x, Shape weight, Shape) { return {x, weight}; }
std::vector<DataType> backward_types(DataType, DataType x, DataType weight, DataType) { return {x, weight}; }

}  // namespace

PD_BUILD_OP(pllm_rms_norm)
    .Inputs({"X", "Weight"})
    .Outputs({"Y", "Invvar"})
    .Attrs({"epsilon: float", "rounding: int", "weight_gradient: bool"})
    .SetKernelFn(PD_KERNEL(forward))
    .SetInferShapeFn(PD_INFER_SHAPE(forward_shapes))
    .SetInferDtypeFn(PD_INFER_DTYPE(forward_types));

PD_BUILD_GRAD_OP(pllm_rms_norm)
    .Inputs({paddle::Grad("Y"), "X", "Weight", "Invvar"})
    .Outputs({paddle::Grad("X"), paddle::Grad("Weight")})
    .Attrs({"epsilon: float", "rounding: int", "weight_gradient: bool"})
    .SetKernelFn(PD_KERNEL(backward))
    .SetInferShapeFn(PD_INFER_SHAPE(backward_shapes))
    .SetInferDtypeFn(PD_INFER_DTYPE(backward_types));
