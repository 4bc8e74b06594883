// A driver with a card that is this machine's memory, and kernels that `build.sh` made of the very sources: what is queued is done
// at once, but for what other libraries queue (`streams.h`). Cards and what they answer are as the environment says (STAND_IN_...), for
// tests on machines without a card.
#include "streams.h"

#include <cstdlib>
#include <cstring>
#include <dlfcn.h>
#include <glob.h>
#include <map>
#include <mutex>
#include <string>
#include <sys/mman.h>

namespace {

constexpr int OUT_OF_MEMORY = 2, NOT_FOUND = 500, NOT_READY = 600;

struct Entry {
    const char *name;
    void (*run)(const unsigned (&grid)[3], const unsigned (&threads)[3], size_t shared, void **arguments);
};

long number(const char *name, long otherwise) {
    const char *value = getenv(name);
    return value ? atol(value) : otherwise;
}

size_t total() { return size_t(number("STAND_IN_MIB", 16 << 10)) << 20; }

std::mutex lock;
size_t used;
std::map<unsigned long long, size_t> pieces;
unsigned long long last_piece;

size_t left() {
    const size_t others = size_t(number("STAND_IN_MIB_OF_OTHERS", 0)) << 20;
    return total() > others + used ? total() - others - used : 0;
}

// The kernels in the libraries beside this one.
const std::map<std::string, const Entry *> &kernels() {
    static const std::map<std::string, const Entry *> all = [] {
        std::map<std::string, const Entry *> found;
        Dl_info self{};
        dladdr(reinterpret_cast<void *>(&kernels), &self);
        std::string folder(self.dli_fname ? self.dli_fname : "");
        folder.resize(folder.rfind('/') == std::string::npos ? 0 : folder.rfind('/') + 1);
        glob_t files{};
        glob((folder + "kernels_*.so").c_str(), 0, nullptr, &files);
        for (size_t i = 0; i < files.gl_pathc; i++) {
            void *library = dlopen(files.gl_pathv[i], RTLD_NOW | RTLD_LOCAL);
            auto list = library ? reinterpret_cast<const Entry *(*)()>(dlsym(library, "kernels")) : nullptr;
            for (const Entry *entry = list ? list() : nullptr; entry && entry->name; entry++) found[entry->name] = entry;
        }
        globfree(&files);
        return found;
    }();
    return all;
}

} // namespace

extern "C" {

int cuInit(unsigned) { return int(number("STAND_IN_INIT", 0)); }
int cuDriverGetVersion(int *version) { return *version = int(number("STAND_IN_VERSION", 13000)), 0; }
int cuDeviceGetCount(int *count) { return *count = int(number("STAND_IN_CARDS", 1)), 0; }
int cuDeviceGet(int *device, int ordinal) { return *device = ordinal, 0; }
int cuDeviceGetName(char *name, int length, int) { return strncpy(name, "Stand-in", size_t(length)), 0; }
int cuDeviceTotalMem_v2(size_t *bytes, int) { return *bytes = total(), 0; }
int cuDeviceGetAttribute(int *value, int attribute, int) {
    switch (attribute) {
    case 75: return *value = int(number("STAND_IN_MAJOR", 9)), 0;
    case 76: return *value = int(number("STAND_IN_MINOR", 0)), 0;
    case 97: return *value = 227 << 10, 0;
    case 102: return *value = int(number("STAND_IN_MAPS", 1)), 0;
    default: return *value = 100, 0;
    }
}
int cuGetErrorName(int, const char **name) { return *name = "CUDA_ERROR_STAND_IN", 0; }
int cuGetErrorString(int, const char **words) { return *words = "a stand-in's words", 0; }

int cuDevicePrimaryCtxRetain(void **context, int) { return *context = &used, int(number("STAND_IN_OPEN", 0)); }
int cuDevicePrimaryCtxRelease_v2(int) { return 0; }
int cuDeviceGetUuid_v2(unsigned char *id, int device) {
    memset(id, 0, 16);
    // Cards that are one and the same, if it is said so.
    return id[0] = number("STAND_IN_SAME", 0) ? 1 : (unsigned char)(1 + device), 0;
}
int cuCtxSetCurrent(void *) { return 0; }
int cuStreamCreate(Stream **stream, unsigned) { return *stream = new Stream, 0; }
int cuStreamDestroy_v2(Stream *stream) { return delete stream, 0; }
int cuStreamSynchronize(Stream *stream) { return stream->finish(), 0; }
int cuStreamWaitEvent(Stream *stream, Event *event, unsigned) { return stream->wait(*event), 0; }
int cuEventCreate(Event **event, unsigned) { return *event = new Event(std::make_shared<Passed>()), 0; }
int cuEventRecord(Event *event, Stream *stream) { return stream->record(*event), 0; }
int cuEventQuery(Event *event) { return (*event)->now() ? 0 : NOT_READY; }
int cuEventSynchronize(Event *event) { return (*event)->wait(), 0; }
int cuEventElapsedTime_v2(float *milliseconds, void *, void *) { return *milliseconds = 1, 0; }
int cuEventDestroy_v2(Event *event) { return delete event, 0; }

int cuMemGetInfo_v2(size_t *free, size_t *all) {
    std::lock_guard<std::mutex> guard(lock);
    return *free = left(), *all = total(), 0;
}
int cuMemGetAllocationGranularity(size_t *bytes, const void *, int) { return *bytes = 2 << 20, 0; }
int cuMemAddressReserve(unsigned long long *address, size_t bytes, size_t, unsigned long long, unsigned long long) {
    void *found = mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    *address = reinterpret_cast<unsigned long long>(found);
    return found == MAP_FAILED ? OUT_OF_MEMORY : 0;
}
int cuMemAddressFree(unsigned long long address, size_t bytes) {
    return munmap(reinterpret_cast<void *>(address), bytes) ? 1 : 0;
}
int cuMemCreate(unsigned long long *piece, size_t bytes, const void *, unsigned long long) {
    std::lock_guard<std::mutex> guard(lock);
    if (bytes > left()) return OUT_OF_MEMORY;
    used += bytes;
    pieces[*piece = ++last_piece] = bytes;
    return 0;
}
int cuMemRelease(unsigned long long piece) {
    std::lock_guard<std::mutex> guard(lock);
    used -= pieces[piece];
    pieces.erase(piece);
    return 0;
}
int cuMemMap(unsigned long long, size_t, size_t, unsigned long long, unsigned long long) { return 0; }
// New memory is full of numbers that are none.
int cuMemSetAccess(unsigned long long address, size_t bytes, const void *, size_t) {
    void *at = reinterpret_cast<void *>(address);
    if (mprotect(at, bytes, PROT_READ | PROT_WRITE)) return OUT_OF_MEMORY;
    memset(at, 0xff, bytes);
    return 0;
}
int cuMemUnmap(unsigned long long address, size_t bytes) {
    void *at = reinterpret_cast<void *>(address);
    void *found = mmap(at, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
    return found == MAP_FAILED ? 1 : 0;
}

int cuMemcpyHtoDAsync_v2(unsigned long long to, const void *from, size_t bytes, void *) {
    return memcpy(reinterpret_cast<void *>(to), from, bytes), 0;
}
int cuMemcpyDtoHAsync_v2(void *to, unsigned long long from, size_t bytes, void *) {
    return memcpy(to, reinterpret_cast<void *>(from), bytes), 0;
}
int cuMemcpyDtoDAsync_v2(unsigned long long to, unsigned long long from, size_t bytes, void *) {
    return memcpy(reinterpret_cast<void *>(to), reinterpret_cast<void *>(from), bytes), 0;
}
int cuMemsetD8Async(unsigned long long at, unsigned char byte, size_t bytes, void *) {
    return memset(reinterpret_cast<void *>(at), byte, bytes), 0;
}
int cuMemsetD2D8Async(unsigned long long at, size_t stride, unsigned char byte, size_t width, size_t rows, void *) {
    for (size_t row = 0; row < rows; row++) memset(reinterpret_cast<void *>(at + row * stride), byte, width);
    return 0;
}

int cuModuleLoadData(void **module, const void *) { return *module = &used, 0; }
int cuModuleUnload(void *) { return 0; }
int cuModuleGetFunction(const void **function, void *, const char *name) {
    const auto found = kernels().find(name);
    return found == kernels().end() ? NOT_FOUND : (*function = found->second, 0);
}
int cuFuncSetAttribute(const void *, int, int) { return 0; }
int cuLaunchKernel(const void *function, unsigned x, unsigned y, unsigned z, unsigned threads_x, unsigned threads_y,
                   unsigned threads_z, unsigned shared, void *, void **arguments, void **) {
    std::lock_guard<std::mutex> guard(lock);
    static_cast<const Entry *>(function)->run({x, y, z}, {threads_x, threads_y, threads_z}, shared, arguments);
    return 0;
}
}
