// A driver with a card that is this machine's memory, and kernels that `build.sh` made of the very sources. Cards and what they
// answer are as the environment says (STAND_IN_...), for tests on machines without a card.
//
// STAND_IN_STREAMS says when what is queued is done; a program that orders its streams well has the same results each time:
//   (unset)     at once;
//   late        when somebody waits for it, and no more than that wait needs: other streams as late as can be;
//   side_first  the same for the first stream of a context, while the others are done at once.
// STAND_IN_FORGETS takes an order away, as a mistake in the program would:
//   main        the first stream of a context waits for no other;
//   side        the others wait for none;
//   marks       whoever asks whether something is done is told that it is.
// What another library queues (`streams.h`) is done later whatever it says, and STAND_IN_DELAY microseconds late: whoever does not wait for
// it finds what was there before. The two are not for one test: whoever waits for a late stream keeps all others from theirs.
// STAND_IN_CALLS is a file to which a line is added for each call that queues work, waits for it or takes memory.
// What is queued while a stream is captured is recorded and not done until the graph is launched. What a driver allows then to nobody, or
// to no thread that captures so that others are not hindered, is an error, and nothing comes of the capture: waiting, asking whether
// something is done, marks, memory, modules. STAND_IN_GRAPHS says what goes wrong all the same: "begin", "end" or "instantiate".
#include "streams.h"

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <dlfcn.h>
#include <functional>
#include <glob.h>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <sys/mman.h>
#include <thread>
#include <utility>
#include <vector>

namespace {

constexpr int INVALID_VALUE = 1, OUT_OF_MEMORY = 2, ILLEGAL_STATE = 401, NOT_FOUND = 500, NOT_READY = 600, UNSUPPORTED = 900,
              INVALIDATED = 901, WRONG_THREAD = 908;

struct Entry {
    const char *name;
    void (*run)(const unsigned (&grid)[3], const unsigned (&threads)[3], size_t shared, void **arguments);
    const size_t *sizes;
    size_t count;
};

long number(const char *name, long otherwise) {
    const char *value = getenv(name);
    return value ? atol(value) : otherwise;
}

size_t total() { return size_t(number("STAND_IN_MIB", 16 << 10)) << 20; }

bool is(const char *name, const char *value) {
    const char *found = getenv(name);
    return found && !strcmp(found, value);
}

// Adds a line to what is called.
void called(const char *what, const char *name = "") {
    static FILE *file = getenv("STAND_IN_CALLS") ? fopen(getenv("STAND_IN_CALLS"), "a") : nullptr;
    if (!file) return;
    fprintf(file, "%s%s%s\n", what, *name ? " " : "", name);
    fflush(file);
}

// Work that was recorded.
using Works = std::vector<std::function<void()>>;

struct Capture {
    std::thread::id thread;
    bool is_valid = true;
    Works works;
};

// Work in order. A stream's work is done by whoever waits for it; from the first work of another library on, by a thread of its own.
struct Stream final : StreamOfOthers {
    bool is_main = false, at_once = true, has_worker = false, ends = false;
    std::deque<std::function<void()>> queue;
    uint64_t queued = 0;
    std::atomic<uint64_t> done{0};
    std::condition_variable_any changed;
    std::thread worker;
    // While it is captured.
    std::unique_ptr<Capture> capture;

    void push(std::function<void()> work) override;
};

Stream *stream_of(void *handle) { return static_cast<Stream *>(static_cast<StreamOfOthers *>(handle)); }

struct Event {
    Stream *stream = nullptr;
    uint64_t at = 0;
};

// Of the streams' queues; what is done takes `lock`, too.
std::recursive_mutex streams_lock;
// Whether a context was opened, and has no stream yet.
bool opens;

// The stream that this thread captures.
thread_local Stream *captured;

// Whether a call cannot be made because this thread captures, or the stream that it is about is captured.
bool is_forbidden(const Stream *stream = nullptr) {
    Stream *of = captured ? captured : stream && stream->capture ? const_cast<Stream *>(stream) : nullptr;
    if (of) of->capture->is_valid = false;
    return of;
}

void do_until(Stream *stream, uint64_t at) {
    std::unique_lock<std::recursive_mutex> guard(streams_lock);
    while (stream->done < at) {
        if (stream->has_worker || stream->queue.empty()) {
            // Another thread is about to have done it, which may need the lock for that.
            guard.unlock();
            std::this_thread::sleep_for(std::chrono::microseconds(20));
            guard.lock();
            continue;
        }
        const std::function<void()> next = std::move(stream->queue.front());
        stream->queue.pop_front();
        next();
        stream->done++;
    }
}

void submit(void *to, std::function<void()> work) {
    Stream *stream = stream_of(to);
    std::unique_lock<std::recursive_mutex> guard(streams_lock);
    if (stream->capture) return stream->capture->works.push_back(std::move(work));
    stream->queued++;
    // Kernels of several threads need not wait for each other here.
    if (stream->at_once && stream->queue.empty() && (!stream->has_worker || stream->done + 1 == stream->queued)) {
        guard.unlock();
        work();
        stream->done++;
        return;
    }
    stream->queue.push_back(std::move(work));
    stream->changed.notify_all();
}

void Stream::push(std::function<void()> work) {
    std::lock_guard<std::recursive_mutex> guard(streams_lock);
    if (!has_worker) {
        has_worker = true;
        worker = std::thread([this] {
            const auto delay = std::chrono::microseconds(number("STAND_IN_DELAY", 0));
            for (std::unique_lock<std::recursive_mutex> guard(streams_lock);;) {
                changed.wait(guard, [this] { return ends || !queue.empty(); });
                if (queue.empty()) return;
                const std::function<void()> next = std::move(queue.front());
                queue.pop_front();
                guard.unlock();
                std::this_thread::sleep_for(delay);
                next();
                done++;
                guard.lock();
            }
        });
    }
    queued++;
    queue.push_back(std::move(work));
    changed.notify_all();
}

bool is_passed(const Event *event) { return !event->stream || event->stream->done >= event->at; }

std::mutex lock;
std::map<uintptr_t, size_t> pinned;

bool is_pinned(const void *at, size_t bytes) {
    std::lock_guard<std::mutex> guard(lock);
    const auto next = pinned.upper_bound(reinterpret_cast<uintptr_t>(at));
    if (next == pinned.begin()) return false;
    const auto found = std::prev(next);
    return reinterpret_cast<uintptr_t>(at) + bytes <= found->first + found->second;
}

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

int cuDevicePrimaryCtxRetain(void **context, int) {
    std::lock_guard<std::recursive_mutex> guard(streams_lock);
    opens = true;
    return *context = &used, int(number("STAND_IN_OPEN", 0));
}
int cuDevicePrimaryCtxRelease_v2(int) { return 0; }
int cuDeviceGetUuid_v2(unsigned char *id, int device) {
    memset(id, 0, 16);
    // Cards that are one and the same, if it is said so.
    return id[0] = number("STAND_IN_SAME", 0) ? 1 : (unsigned char)(1 + device), 0;
}
int cuCtxSetCurrent(void *) { return 0; }
int cuStreamCreate(void **stream, unsigned) {
    std::lock_guard<std::recursive_mutex> guard(streams_lock);
    const bool late = is("STAND_IN_STREAMS", "late"), side_first = is("STAND_IN_STREAMS", "side_first");
    const bool is_main = std::exchange(opens, false);
    // Never freed: events may name it as long as the program runs.
    Stream *made = new Stream;
    made->is_main = is_main;
    made->at_once = !late && !(side_first && is_main);
    return *stream = static_cast<StreamOfOthers *>(made), 0;
}
int cuStreamSynchronize(void *of) {
    Stream *stream = stream_of(of);
    called("wait stream");
    if (is_forbidden(stream)) return UNSUPPORTED;
    return do_until(stream, stream->queued), 0;
}
int cuStreamDestroy_v2(void *of) {
    Stream *stream = stream_of(of);
    do_until(stream, stream->queued);
    if (!stream->has_worker) return 0;
    {
        std::lock_guard<std::recursive_mutex> guard(streams_lock);
        stream->ends = true;
        stream->changed.notify_all();
    }
    return stream->worker.join(), 0;
}
int cuStreamWaitEvent(void *of, void *other, unsigned) {
    const Stream *stream = stream_of(of);
    if (stream->capture && is_forbidden(stream)) return UNSUPPORTED;
    if (is("STAND_IN_FORGETS", stream->is_main ? "main" : "side")) return 0;
    const Event event = *static_cast<Event *>(other);
    if (event.stream && event.stream != stream) submit(of, [event] { do_until(event.stream, event.at); });
    return 0;
}
int cuEventCreate(void **event, unsigned) { return *event = new Event, 0; }
int cuEventRecord(void *of, void *stream) {
    std::lock_guard<std::recursive_mutex> guard(streams_lock);
    if (stream_of(stream)->capture && is_forbidden(stream_of(stream))) return UNSUPPORTED;
    return *static_cast<Event *>(of) = Event{stream_of(stream), stream_of(stream)->queued}, 0;
}
int cuEventQuery(void *of) {
    std::lock_guard<std::recursive_mutex> guard(streams_lock);
    if (is_forbidden()) return UNSUPPORTED;
    return is("STAND_IN_FORGETS", "marks") || is_passed(static_cast<Event *>(of)) ? 0 : NOT_READY;
}
int cuEventSynchronize(void *of) {
    const Event event = *static_cast<Event *>(of);
    called("wait event");
    if (is_forbidden()) return UNSUPPORTED;
    if (event.stream) do_until(event.stream, event.at);
    return 0;
}
int cuEventElapsedTime_v2(float *milliseconds, void *, void *) { return *milliseconds = 1, 0; }
int cuEventDestroy_v2(void *event) { return delete static_cast<Event *>(event), 0; }

// Memory of the machine that copies read and write when they are done, and not when they are queued.
int cuMemHostAlloc(void **at, size_t bytes, unsigned) {
    called("memory of the machine");
    if (is_forbidden()) return UNSUPPORTED;
    if (!(*at = malloc(bytes))) return OUT_OF_MEMORY;
    memset(*at, 0xff, bytes);
    std::lock_guard<std::mutex> guard(lock);
    return pinned[reinterpret_cast<uintptr_t>(*at)] = bytes, 0;
}
int cuMemFreeHost(void *at) {
    std::lock_guard<std::mutex> guard(lock);
    return pinned.erase(reinterpret_cast<uintptr_t>(at)), free(at), 0;
}

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
    called("memory of the card");
    if (is_forbidden()) return UNSUPPORTED;
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

int cuMemcpyHtoDAsync_v2(unsigned long long to, const void *from, size_t bytes, void *stream) {
    void *at = reinterpret_cast<void *>(to);
    if (is_pinned(from, bytes)) {
        called("to the card");
        return submit(stream, [=] { memcpy(at, from, bytes); }), 0;
    }
    called("to the card, not pinned");
    // A graph reads it when it is launched.
    if (stream_of(stream)->capture) return submit(stream, [=] { memcpy(at, from, bytes); }), 0;
    const char *begin = static_cast<const char *>(from);
    const auto read = std::make_shared<std::vector<char>>(begin, begin + bytes);
    return submit(stream, [=] { memcpy(at, read->data(), bytes); }), 0;
}
int cuMemcpyDtoHAsync_v2(void *to, unsigned long long from, size_t bytes, void *stream) {
    const bool waits = !is_pinned(to, bytes) && !stream_of(stream)->capture;
    called(waits ? "from the card, not pinned" : "from the card");
    submit(stream, [=] { memcpy(to, reinterpret_cast<void *>(from), bytes); });
    if (waits) do_until(stream_of(stream), stream_of(stream)->queued);
    return 0;
}
int cuMemcpyDtoDAsync_v2(unsigned long long to, unsigned long long from, size_t bytes, void *stream) {
    called("on the card");
    return submit(stream, [=] { memcpy(reinterpret_cast<void *>(to), reinterpret_cast<void *>(from), bytes); }), 0;
}
int cuMemsetD8Async(unsigned long long at, unsigned char byte, size_t bytes, void *stream) {
    called("fill");
    return submit(stream, [=] { memset(reinterpret_cast<void *>(at), byte, bytes); }), 0;
}
int cuMemsetD2D8Async(unsigned long long at, size_t stride, unsigned char byte, size_t width, size_t rows, void *stream) {
    called("fill");
    return submit(stream, [=] {
        for (size_t row = 0; row < rows; row++) memset(reinterpret_cast<void *>(at + row * stride), byte, width);
    }), 0;
}

int cuModuleLoadData(void **module, const void *) {
    called("module");
    return is_forbidden() ? UNSUPPORTED : (*module = &used, 0);
}
int cuModuleUnload(void *) { return 0; }
int cuModuleGetFunction(const void **function, void *, const char *name) {
    const auto found = kernels().find(name);
    return found == kernels().end() ? NOT_FOUND : (*function = found->second, 0);
}
int cuFuncSetAttribute(const void *, int, int) { return 0; }
int cuLaunchKernel(const void *function, unsigned x, unsigned y, unsigned z, unsigned threads_x, unsigned threads_y,
                   unsigned threads_z, unsigned shared, void *stream, void **arguments, void **) {
    const Entry *entry = static_cast<const Entry *>(function);
    called(stream_of(stream)->capture ? "captured launch" : "launch", entry->name);
    // Arguments are the caller's again when the call returns.
    auto copies = std::make_shared<std::vector<std::vector<char>>>();
    for (size_t i = 0; i < entry->count; i++) {
        const char *argument = static_cast<const char *>(arguments[i]);
        copies->emplace_back(argument, argument + entry->sizes[i]);
    }
    submit(stream, [=] {
        std::vector<void *> pointers;
        for (auto &copy : *copies) pointers.push_back(copy.data());
        std::lock_guard<std::mutex> guard(lock);
        entry->run({x, y, z}, {threads_x, threads_y, threads_z}, shared, pointers.data());
    });
    return 0;
}

int cuStreamBeginCapture_v2(void *of, int mode) {
    called("begin capture");
    std::lock_guard<std::recursive_mutex> guard(streams_lock);
    Stream *stream = stream_of(of);
    // Of the modes there is the one of a thread.
    if (mode != 1 || is("STAND_IN_GRAPHS", "begin")) return INVALID_VALUE;
    if (captured || stream->capture) return ILLEGAL_STATE;
    stream->capture = std::make_unique<Capture>();
    stream->capture->thread = std::this_thread::get_id();
    return captured = stream, 0;
}
int cuStreamEndCapture(void *of, void **graph) {
    called("end capture");
    std::lock_guard<std::recursive_mutex> guard(streams_lock);
    Stream *stream = stream_of(of);
    *graph = nullptr;
    if (!stream->capture) return ILLEGAL_STATE;
    if (stream->capture->thread != std::this_thread::get_id()) return WRONG_THREAD;
    const std::unique_ptr<Capture> capture = std::move(stream->capture);
    captured = nullptr;
    if (!capture->is_valid || is("STAND_IN_GRAPHS", "end")) return INVALIDATED;
    return *graph = new Works(std::move(capture->works)), 0;
}
// A graph to be launched is what the graph was when it was made; launches keep what they do.
int cuGraphInstantiateWithFlags(void **made, void *graph, unsigned long long) {
    called("instantiate");
    if (captured || is("STAND_IN_GRAPHS", "instantiate")) return is_forbidden() ? UNSUPPORTED : OUT_OF_MEMORY;
    return *made = new std::shared_ptr<const Works>(std::make_shared<const Works>(*static_cast<Works *>(graph))), 0;
}
int cuGraphDestroy(void *graph) { return delete static_cast<Works *>(graph), 0; }
int cuGraphExecDestroy(void *made) { return delete static_cast<std::shared_ptr<const Works> *>(made), 0; }
int cuGraphLaunch(void *made, void *stream) {
    called("graph");
    if (is_forbidden(stream_of(stream))) return UNSUPPORTED;
    const auto works = *static_cast<std::shared_ptr<const Works> *>(made);
    submit(stream, [works] {
        for (const auto &work : *works) work();
    });
    return 0;
}

// For the stand-in's cuBLASLt: queues a product, which is done as often as a graph that it is in, and ended then.
void stand_in_queue(void *stream, void (*work)(void *), void (*end)(void *), void *of) {
    called(stream_of(stream)->capture ? "captured product" : "product");
    const std::shared_ptr<void> product(of, end);
    submit(stream, [=] { work(product.get()); });
}
}
