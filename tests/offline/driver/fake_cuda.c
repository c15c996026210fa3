/*
 * A fake libcuda.so.1: what Triton's CUDA driver and launcher call, without a GPU.
 *
 * It runs no kernel. It refuses what the CUDA driver documents as invalid (a tensor map, a grid, a block, shared
 * memory, a cubin of another GPU), and writes a line of JSON to the file $FAKE_CUDA_LOG for each kernel that is
 * loaded, each tensor map and each launch, with the bytes of every kernel parameter. How many parameters a
 * kernel has, and their sizes, are read from the cubin, as ptxas wrote them. While the variable is empty nothing is
 * written, so that the host time of a launch can be measured.
 *
 * The GPU: $FAKE_CUDA_CAPABILITY (90), $FAKE_CUDA_SHARED_BYTES a block may have, $FAKE_CUDA_SM_COUNT.
 *
 * This file is over 400 lines because Triton loads one library, and calls two dozen functions of it.
 */

#include "cuda.h"

#include <elf.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#undef cuDevicePrimaryCtxRetain

enum {
    MAX_PARAMETERS = 256,
    REGISTERS_PER_BLOCK = 65536,
    THREADS_PER_BLOCK = 1024,
    SHARED_WITHOUT_OPT_IN = 48 * 1024,
    GRID_YZ = 65535,
    BOX = 256,
    ELEMENT_STRIDE = 8,
};
#define GRID_X 2147483647u
#define TENSOR_DIMENSION (1ull << 32)
#define TENSOR_STRIDE (1ull << 40)
#define TENSOR_MAP_MARK 0x70616d726f736e74ull

/* ---- log ---- */

static void log_json(const char *format, ...) {
    static FILE *log;
    const char *path = getenv("FAKE_CUDA_LOG");
    if (path && !*path)
        return;
    if (!log) {
        log = path ? fopen(path, "a") : stderr;
        if (!log)
            abort();
    }
    va_list arguments;
    va_start(arguments, format);
    vfprintf(log, format, arguments);
    va_end(arguments);
    fflush(log);
}

static void log_numbers(const char *name, const uint64_t *numbers, unsigned count) {
    log_json(", \"%s\": [", name);
    for (unsigned i = 0; i < count; i++)
        log_json("%s%llu", i ? ", " : "", (unsigned long long)numbers[i]);
    log_json("]");
}

/* ---- device ---- */

static int setting(const char *name, int otherwise) {
    const char *value = getenv(name);
    return value ? atoi(value) : otherwise;
}

static int capability(void) { return setting("FAKE_CUDA_CAPABILITY", 90); }
static int shared_bytes_per_block(void) { return setting("FAKE_CUDA_SHARED_BYTES", 227 * 1024); }

CUresult CUDAAPI cuInit(unsigned flags) {
    (void)flags;
    return CUDA_SUCCESS;
}

CUresult CUDAAPI cuDriverGetVersion(int *version) {
    *version = 13000;
    return CUDA_SUCCESS;
}

CUresult CUDAAPI cuDeviceGet(CUdevice *device, int ordinal) {
    *device = ordinal;
    return CUDA_SUCCESS;
}

CUresult CUDAAPI cuDeviceGetCount(int *count) {
    *count = 1;
    return CUDA_SUCCESS;
}

CUresult CUDAAPI cuDeviceGetAttribute(int *value, CUdevice_attribute attribute, CUdevice device) {
    (void)device;
    switch (attribute) {
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR:
        *value = capability() / 10;
        break;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR:
        *value = capability() % 10;
        break;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN:
        *value = shared_bytes_per_block();
        break;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR:
        *value = shared_bytes_per_block() + 1024;
        break;
    case CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_BLOCK:
        *value = REGISTERS_PER_BLOCK;
        break;
    case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT:
        *value = setting("FAKE_CUDA_SM_COUNT", 132);
        break;
    case CU_DEVICE_ATTRIBUTE_WARP_SIZE:
        *value = 32;
        break;
    default:
        *value = 1;
    }
    return CUDA_SUCCESS;
}

CUresult CUDAAPI cuCtxGetCurrent(CUcontext *context) {
    *context = (CUcontext)1;
    return CUDA_SUCCESS;
}

CUresult CUDAAPI cuCtxSetCurrent(CUcontext context) {
    (void)context;
    return CUDA_SUCCESS;
}

CUresult CUDAAPI cuCtxGetDevice(CUdevice *device) { return cuDeviceGet(device, 0); }

CUresult CUDAAPI cuCtxGetLimit(size_t *value, CUlimit limit) {
    (void)limit;
    *value = 0;
    return CUDA_SUCCESS;
}

CUresult CUDAAPI cuCtxSetLimit(CUlimit limit, size_t value) {
    (void)limit, (void)value;
    return CUDA_SUCCESS;
}

CUresult CUDAAPI cuDevicePrimaryCtxRetain_v2(CUcontext *context, CUdevice device) {
    (void)device;
    return cuCtxGetCurrent(context);
}

CUresult CUDAAPI cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device) {
    return cuDevicePrimaryCtxRetain_v2(context, device);
}

CUresult CUDAAPI cuGetErrorString(CUresult error, const char **text) {
    *text = error == CUDA_ERROR_INVALID_VALUE       ? "invalid argument"
            : error == CUDA_ERROR_NO_BINARY_FOR_GPU ? "no kernel image is available for execution on the device"
            : error == CUDA_ERROR_NOT_FOUND         ? "named symbol not found"
                                                    : "unknown error";
    return CUDA_SUCCESS;
}

/* Memory of the CPU stands for that of the GPU: every address is accessible. */

CUresult CUDAAPI cuPointerGetAttribute(void *data, CUpointer_attribute attribute, CUdeviceptr pointer) {
    (void)attribute;
    *(CUdeviceptr *)data = pointer;
    return CUDA_SUCCESS;
}

CUresult CUDAAPI cuStreamIsCapturing(CUstream stream, CUstreamCaptureStatus *status) {
    (void)stream;
    *status = CU_STREAM_CAPTURE_STATUS_NONE;
    return CUDA_SUCCESS;
}

CUresult CUDAAPI cuOccupancyMaxActiveClusters(int *clusters, CUfunction function, const CUlaunchConfig *config) {
    (void)function, (void)config;
    *clusters = 1;
    return CUDA_SUCCESS;
}

/* ---- cubins ---- */

typedef struct {
    char name[256];
    unsigned parameters;
    uint64_t parameter_bytes[MAX_PARAMETERS];
    int registers;
    int required_threads; /* 0: the kernel asks for none */
    int dynamic_shared_bytes; /* most that a launch may ask for */
} Function;

/* Attributes of a kernel in the sections .nv.info (of all kernels) and .nv.info.KERNEL; names as cuobjdump's. */
enum { EIFMT_SVAL = 4 };
enum {
    EIATTR_MAX_THREADS = 0x05,
    EIATTR_REQNTID = 0x10,
    EIATTR_KPARAM_INFO = 0x17,
    EIATTR_REGCOUNT = 0x2f,
};

static const Elf64_Shdr *section(const char *elf, const char *name) {
    const Elf64_Ehdr *header = (const void *)elf;
    const Elf64_Shdr *sections = (const void *)(elf + header->e_shoff);
    const char *names = elf + sections[header->e_shstrndx].sh_offset;
    for (unsigned i = 0; i < header->e_shnum; i++)
        if (!strcmp(names + sections[i].sh_name, name))
            return &sections[i];
    return NULL;
}

static bool read_attributes(const char *elf, const char *name, Function *function) {
    const Elf64_Shdr *info = section(elf, name);
    if (!info)
        return false;
    const uint8_t *at = (const uint8_t *)elf + info->sh_offset, *end = at + info->sh_size;
    while (at < end) {
        uint8_t format = at[0], attribute = at[1];
        uint16_t bytes = 0;
        if (format == EIFMT_SVAL)
            memcpy(&bytes, at + 2, sizeof bytes);
        const uint8_t *value = at + 4;
        uint32_t words[3] = {0};
        memcpy(words, value, bytes < sizeof words ? bytes : sizeof words);
        if (attribute == EIATTR_REQNTID)
            function->required_threads = (int)(words[0] * words[1] * words[2]);
        if (attribute == EIATTR_REGCOUNT)
            function->registers = (int)words[1]; /* a Triton cubin holds one kernel */
        if (attribute == EIATTR_KPARAM_INFO) {
            unsigned ordinal = words[1] & 0xffff;
            if (ordinal >= MAX_PARAMETERS)
                return false;
            function->parameter_bytes[ordinal] = words[2] >> 18;
            if (ordinal >= function->parameters)
                function->parameters = ordinal + 1;
        }
        at = value + bytes;
    }
    return true;
}

static int cubin_capability(const char *elf) {
    const Elf64_Ehdr *header = (const void *)elf;
    bool new_layout = header->e_ident[EI_ABIVERSION] >= 8;
    return (int)(new_layout ? header->e_flags >> 8 & 0xff : header->e_flags & 0xff);
}

CUresult CUDAAPI cuModuleLoadData(CUmodule *module, const void *image) {
    if (memcmp(image, ELFMAG, SELFMAG))
        return CUDA_ERROR_INVALID_VALUE;
    if (cubin_capability(image) != capability()) {
        log_json("{\"event\": \"module\", \"refused\": \"compiled for sm_%d, this is sm_%d\"}\n",
                 cubin_capability(image), capability());
        return CUDA_ERROR_NO_BINARY_FOR_GPU;
    }
    *module = (CUmodule)image; /* Triton keeps the cubin while it uses the module */
    return CUDA_SUCCESS;
}

CUresult CUDAAPI cuModuleUnload(CUmodule module) {
    (void)module;
    return CUDA_SUCCESS;
}

CUresult CUDAAPI cuModuleGetFunction(CUfunction *found, CUmodule module, const char *name) {
    Function *function = calloc(1, sizeof *function);
    char attributes[sizeof function->name + sizeof ".nv.info."];
    snprintf(function->name, sizeof function->name, "%s", name);
    snprintf(attributes, sizeof attributes, ".nv.info.%s", function->name);
    function->dynamic_shared_bytes = SHARED_WITHOUT_OPT_IN;
    if (!read_attributes((const char *)module, attributes, function) ||
        !read_attributes((const char *)module, ".nv.info", function)) {
        free(function);
        return CUDA_ERROR_NOT_FOUND;
    }
    log_json("{\"event\": \"function\", \"kernel\": \"%s\", \"registers\": %d, \"required_threads\": %d", name,
             function->registers, function->required_threads);
    log_numbers("parameter_bytes", function->parameter_bytes, function->parameters);
    log_json("}\n");
    *found = (CUfunction)function;
    return CUDA_SUCCESS;
}

CUresult CUDAAPI cuFuncGetAttribute(int *value, CUfunction_attribute attribute, CUfunction handle) {
    const Function *function = (const Function *)handle;
    *value = 0;
    if (attribute == CU_FUNC_ATTRIBUTE_NUM_REGS)
        *value = function->registers;
    if (attribute == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK)
        *value = function->required_threads ? function->required_threads : THREADS_PER_BLOCK;
    return CUDA_SUCCESS;
}

CUresult CUDAAPI cuFuncSetAttribute(CUfunction handle, CUfunction_attribute attribute, int value) {
    Function *function = (Function *)handle;
    if (attribute != CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES || value > shared_bytes_per_block())
        return CUDA_ERROR_INVALID_VALUE;
    function->dynamic_shared_bytes = value;
    return CUDA_SUCCESS;
}

CUresult CUDAAPI cuFuncSetCacheConfig(CUfunction function, CUfunc_cache config) {
    (void)function, (void)config;
    return CUDA_SUCCESS;
}

/* ---- tensor maps ---- */

static unsigned element_bytes(CUtensorMapDataType type) {
    switch (type) {
    case CU_TENSOR_MAP_DATA_TYPE_UINT8:
        return 1;
    case CU_TENSOR_MAP_DATA_TYPE_UINT16:
    case CU_TENSOR_MAP_DATA_TYPE_FLOAT16:
    case CU_TENSOR_MAP_DATA_TYPE_BFLOAT16:
        return 2;
    case CU_TENSOR_MAP_DATA_TYPE_UINT64:
    case CU_TENSOR_MAP_DATA_TYPE_INT64:
    case CU_TENSOR_MAP_DATA_TYPE_FLOAT64:
        return 8;
    default:
        return 4;
    }
}

/* Bytes that a row of a box may have. */
static unsigned swizzle_bytes(CUtensorMapSwizzle swizzle) {
    switch (swizzle) {
    case CU_TENSOR_MAP_SWIZZLE_NONE:
        return UINT32_MAX;
    case CU_TENSOR_MAP_SWIZZLE_32B:
        return 32;
    case CU_TENSOR_MAP_SWIZZLE_64B:
        return 64;
    default:
        return 128;
    }
}

/* Why the CUDA driver refuses a tensor map (reference manual, "Tensor Map Object Management"); NULL if it does not. */
static const char *map_refusal(const CUtensorMap *map, unsigned bytes, unsigned rank, const void *address,
                               const cuuint64_t *dims, const cuuint64_t *strides, const cuuint32_t *box,
                               const cuuint32_t *element_strides, CUtensorMapSwizzle swizzle) {
    if ((uintptr_t)map % 64)
        return "the map is not aligned to 64 bytes";
    if (rank < 1 || rank > 5)
        return "the rank is not 1 to 5";
    if ((uintptr_t)address % 16)
        return "the address is not aligned to 16 bytes";
    for (unsigned i = 0; i < rank; i++) {
        if (dims[i] == 0 || dims[i] > TENSOR_DIMENSION)
            return "a dimension is not 1 to 2^32";
        if (box[i] == 0 || box[i] > BOX)
            return "a box dimension is not 1 to 256";
        if (element_strides[i] == 0 || element_strides[i] > ELEMENT_STRIDE)
            return "an element stride is not 1 to 8";
    }
    for (unsigned i = 0; i + 1 < rank; i++) {
        if (strides[i] % 16)
            return "a stride is no multiple of 16 bytes";
        if (strides[i] >= TENSOR_STRIDE)
            return "a stride is not below 2^40 bytes";
    }
    if (box[0] * bytes % 16)
        return "a row of the box is no multiple of 16 bytes";
    if (box[0] * bytes > swizzle_bytes(swizzle))
        return "a row of the box is longer than the swizzle";
    return NULL;
}

CUresult CUDAAPI cuTensorMapEncodeTiled(CUtensorMap *map, CUtensorMapDataType type, cuuint32_t rank, void *address,
                                        const cuuint64_t *dims, const cuuint64_t *strides, const cuuint32_t *box,
                                        const cuuint32_t *element_strides, CUtensorMapInterleave interleave,
                                        CUtensorMapSwizzle swizzle, CUtensorMapL2promotion l2_promotion,
                                        CUtensorMapFloatOOBfill fill) {
    static uint64_t maps;
    (void)l2_promotion;
    const char *refusal =
        map_refusal(map, element_bytes(type), rank, address, dims, strides, box, element_strides, swizzle);
    bool ascending = true;
    uint64_t dims64[5] = {0}, strides64[5] = {0}, box64[5] = {0};
    unsigned shown = rank > 5 ? 0 : rank;
    for (unsigned i = 0; i < shown; i++) {
        dims64[i] = dims[i];
        box64[i] = box[i];
        if (i + 1 < shown)
            strides64[i] = strides[i];
        if (i > 0 && i + 1 < shown && strides[i] < strides[i - 1])
            ascending = false;
    }
    log_json("{\"event\": \"tensor_map\", \"number\": %llu, \"type\": %d, \"element_bytes\": %u, \"address\": %llu, "
             "\"swizzle\": %d, \"interleave\": %d, \"fill\": %d, \"ascending_strides\": %s",
             (unsigned long long)maps, (int)type, element_bytes(type), (unsigned long long)(uintptr_t)address,
             (int)swizzle, (int)interleave, (int)fill, ascending ? "true" : "false");
    log_numbers("dims", dims64, shown);
    log_numbers("strides", strides64, shown ? shown - 1 : 0);
    log_numbers("box", box64, shown);
    if (refusal) {
        log_json(", \"refused\": \"%s\"}\n", refusal);
        return CUDA_ERROR_INVALID_VALUE;
    }
    log_json("}\n");
    /* Not the hardware's format: the number by which a launch's parameter is known again. */
    memset(map, 0, sizeof *map);
    map->opaque[0] = TENSOR_MAP_MARK;
    map->opaque[2] = maps++;
    return CUDA_SUCCESS;
}

/* ---- launches ---- */

/* Why the CUDA driver refuses a launch; NULL if it does not. */
static const char *launch_refusal(const CUlaunchConfig *config, const Function *function, void **parameters) {
    unsigned threads = config->blockDimX * config->blockDimY * config->blockDimZ;
    if (config->gridDimX < 1 || config->gridDimY < 1 || config->gridDimZ < 1)
        return "a grid dimension is 0";
    if (config->gridDimX > GRID_X || config->gridDimY > GRID_YZ || config->gridDimZ > GRID_YZ)
        return "the grid is over 2147483647 x 65535 x 65535";
    if (threads < 1 || threads > THREADS_PER_BLOCK)
        return "the block has no 1 to 1024 threads";
    if (function->required_threads && threads != (unsigned)function->required_threads)
        return "the block has another size than the kernel was compiled for";
    if (threads * (unsigned)function->registers > REGISTERS_PER_BLOCK)
        return "the block's registers are over 65536";
    if (config->sharedMemBytes > (unsigned)function->dynamic_shared_bytes)
        return "the shared memory is over what was set for the kernel";
    for (unsigned i = 0; i < function->parameters; i++)
        if (!parameters[i])
            return "a parameter is missing";
    return NULL;
}

CUresult CUDAAPI cuLaunchKernelEx(const CUlaunchConfig *config, CUfunction handle, void **parameters, void **extra) {
    (void)extra;
    const Function *function = (const Function *)handle;
    const char *refusal = launch_refusal(config, function, parameters);
    uint64_t grid[] = {config->gridDimX, config->gridDimY, config->gridDimZ};
    uint64_t block[] = {config->blockDimX, config->blockDimY, config->blockDimZ};
    log_json("{\"event\": \"launch\", \"kernel\": \"%s\", \"registers\": %d, \"shared_bytes\": %u", function->name,
             function->registers, config->sharedMemBytes);
    log_numbers("grid", grid, 3);
    log_numbers("block", block, 3);
    if (refusal) {
        log_json(", \"refused\": \"%s\"}\n", refusal);
        return CUDA_ERROR_INVALID_VALUE;
    }
    log_json(", \"parameters\": [");
    for (unsigned i = 0; i < function->parameters; i++) {
        log_json("%s\"", i ? ", " : "");
        for (uint64_t byte = 0; byte < function->parameter_bytes[i]; byte++)
            log_json("%02x", ((const uint8_t *)parameters[i])[byte]);
        log_json("\"");
    }
    log_json("]}\n");
    return CUDA_SUCCESS;
}
