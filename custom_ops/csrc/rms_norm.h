/* The C interface of the fused RMSNorm: launchers on raw pointers, for CPU and CUDA, free of any framework.
 *
 *   forward    s = x                      or, with a residual,  s = x + residual   (rounded to x's type, as unfused code does)
 *              invvar = 1 / sqrt(mean(s * s) + epsilon)
 *              y = (s * invvar) * weight
 *   backward   g = dy * weight,  n = s * invvar
 *              dx = invvar * (g - n * mean(g * n)) + dsum,  dweight = sum over rows of dy * n
 *
 * (Zhang and Sennrich, "Root Mean Square Layer Normalization", 2019, equation 4.) A matrix is [rows, hidden], elements of a
 * row side by side, rows `stride` elements apart. Arithmetic is fp32 throughout; y, sum and dx are rounded once, to x's type,
 * dweight to weight's. The same bits come out of every call with the same shape; on a CPU also for every number of threads and
 * every instruction set. No function throws, allocates, or keeps anything between calls.
 */
#ifndef PLLM_RMS_NORM_H_
#define PLLM_RMS_NORM_H_

#include <stdint.h>

#if defined(_WIN32)
#define PLLM_API __declspec(dllexport)
#else
#define PLLM_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

enum { PLLM_RMS_NORM_MAX_HIDDEN = 65536 };

/* Types of elements. */
enum { PLLM_FLOAT32 = 0, PLLM_FLOAT16 = 1, PLLM_BFLOAT16 = 2 };

/* Where a 16-bit result is rounded. FP32: once, at the end, which is the more accurate. LLAMA: n = s * invvar is rounded to
 * x's type before the weight, as LLaMA's unfused code does, so that results can be compared with it bit by bit; dweight then
 * uses the rounded n, and dx takes the rounding as the identity. The two are the same for fp32. */
enum { PLLM_ROUND_FP32 = 0, PLLM_ROUND_LLAMA = 1 };

/* What every launcher returns: one of these, or PLLM_CUDA_ERROR + a cudaError_t. */
enum {
  PLLM_OK = 0,
  PLLM_BAD_SHAPE = 1,     /* rows < 0, or hidden outside 1..65536 */
  PLLM_BAD_TYPE = 2,      /* weight must be fp32 or of x's type */
  PLLM_BAD_ROUNDING = 3,
  PLLM_BAD_EPSILON = 4,   /* negative or NaN */
  PLLM_NULL_POINTER = 5,  /* a tensor that is needed is missing; residual and sum come together */
  PLLM_BAD_STRIDE = 6,    /* rows of an output overlap */
  PLLM_MISALIGNED = 7,    /* a pointer is no multiple of its element's size */
  PLLM_BAD_WORKSPACE = 8, /* smaller than pllm_rms_norm_workspace_* says */
  PLLM_BAD_OPTION = 9,    /* of pllm_cpu_options: threads < 0, an instruction set that this processor lacks */
  PLLM_CUDA_ERROR = 1000  /* never by itself: CUDA's begin at 1 */
};


typedef struct {
  int64_t rows;   /* may be 0: nothing is read; dweight, if asked for, becomes zero */
  int64_t hidden; /* 1..65536 */
  float epsilon;
  int32_t x_type;      /* of x, residual, sum, y, dy, dsum, dx */
  int32_t weight_type; /* of weight and dweight: fp32 or x_type */
  int32_t rounding;    /* PLLM_ROUND_* */
} pllm_rms_norm_shape;

/* Strides are in elements and at least `hidden` for outputs (as long as there are two rows). Inputs may have any, also 0 and
 * negative ones. Tensors do not overlap, except that an output may be the very tensor (same pointer, same stride) that an
 * input of the same element is: sum = x, sum = residual, y = x without residual. */
typedef struct {
  pllm_rms_norm_shape shape;
  const void* x; /* [rows, hidden] */
  int64_t x_stride;
  const void* residual; /* [rows, hidden], or NULL */
  int64_t residual_stride;
  const void* weight; /* [hidden] */
  void* sum;          /* [rows, hidden] out: x + residual; NULL exactly when residual is */
  int64_t sum_stride;
  void* y; /* [rows, hidden] out */
  int64_t y_stride;
  float* invvar; /* [rows] out, or NULL */
} pllm_rms_norm_forward;

/* Likewise; dx may be dy or dsum. */
typedef struct {
  pllm_rms_norm_shape shape;
  const void* dy; /* [rows, hidden] */
  int64_t dy_stride;
  const void* x; /* [rows, hidden]: what was normed, so forward's `sum` where there was a residual */
  int64_t x_stride;
  const void* weight;  /* [hidden] */
  const float* invvar; /* [rows], from forward */
  const void* dsum;    /* [rows, hidden] gradient that reaches `sum` past the norm, or NULL */
  int64_t dsum_stride;
  void* dx; /* [rows, hidden] out: the gradient of x, and of residual */
  int64_t dx_stride;
  void* dweight;          /* [hidden] out, or NULL: not wanted (a frozen weight), which is cheaper */
  void* workspace;        /* what pllm_rms_norm_workspace_* asks for, in the device's memory; overwritten */
  int64_t workspace_size; /* bytes */
} pllm_rms_norm_backward;

/* ---- CPU (rms_norm_cpu*.cpp) ---------------------------------------------------------------------------------------- */

/* Instruction sets, in rising order. PORTABLE is plain C++ (arm64, old x86-64). */
enum { PLLM_ISA_BEST = 0, PLLM_ISA_PORTABLE = 1, PLLM_ISA_AVX2 = 2, PLLM_ISA_AVX512 = 3 };

/* How results are stored. STREAM bypasses the caches, where rows of the outputs start at multiples of 64 bytes: faster by up to a
 * third once tensors do not fit into the caches, worse below. AUTO: where tensors together have more bytes than the last cache. */
enum { PLLM_STORES_AUTO = 0, PLLM_STORES_CACHE = 1, PLLM_STORES_STREAM = 2 };

typedef struct {
  int32_t threads; /* 0: OpenMP's own number */
  int32_t isa;     /* PLLM_ISA_* */
  int32_t stores;  /* PLLM_STORES_* */
} pllm_cpu_options;

/* The best instruction set that this build and this processor have. */
PLLM_API int pllm_rms_norm_cpu_isa(void);
/* "portable", "avx2", "avx512"; NULL for anything else. */
PLLM_API const char* pllm_rms_norm_cpu_isa_name(int isa);

/* Bytes of the last cache, as AUTO takes them. */
PLLM_API int64_t pllm_rms_norm_cpu_cache(void);

/* Bytes that backward needs, whatever the number of threads: at most 1 KiB x hidden, none if dweight is not wanted. Minus a code
 * on error. */
PLLM_API int64_t pllm_rms_norm_workspace_cpu(const pllm_rms_norm_shape* shape, int want_dweight);

/* One line of English for a code. */
PLLM_API const char* pllm_rms_norm_message(int code);

/* `options` may be NULL: all of it 0. */
PLLM_API int pllm_rms_norm_forward_cpu(const pllm_rms_norm_forward* args, const pllm_cpu_options* options);
PLLM_API int pllm_rms_norm_backward_cpu(const pllm_rms_norm_backward* args, const pllm_cpu_options* options);

/* ---- CUDA (rms_norm_cuda.cu) ---- Pointers are of the current device, and of memory that lives until the stream is done. Launches
 * only, never waits; may be captured into a graph. The same bits each time on devices of one kind. Fastest where every matrix and
 * weight is aligned to 16 bytes, row by row; any other alignment works. */

/* Bytes that backward needs on the current device. Minus a code on error. */
PLLM_API int64_t pllm_rms_norm_workspace_cuda(const pllm_rms_norm_shape* shape, int want_dweight);

/* Likewise, and for CUDA's errors. */
PLLM_API const char* pllm_rms_norm_message_cuda(int code);

/* `stream` is a cudaStream_t. */
PLLM_API int pllm_rms_norm_forward_cuda(const pllm_rms_norm_forward* args, void* stream);
PLLM_API int pllm_rms_norm_backward_cuda(const pllm_rms_norm_backward* args, void* stream);

#ifdef __cplusplus
}
#endif

#endif /* PLLM_RMS_NORM_H_ */
