// What of NCCL is used, between threads of one process: each is a rank. What is queued is done when all ranks have come to it, by the last
// of them, which has the memory of all; sums are made from the last rank down, so that nobody takes them for those of the processor. Calls
// are written to the file that STAND_IN_COLLECTIVES names. STAND_IN_LOST is the error that NCCL has met meanwhile.
#include "streams.h"

#include <condition_variable>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

namespace {

enum { SUCCESS = 0, INVALID_ARGUMENT = 4, INVALID_USAGE = 5 };
constexpr int BYTES = 1, F32 = 7;

long number(const char *name, long otherwise) {
    const char *value = getenv(name);
    return value ? atol(value) : otherwise;
}

struct Id {
    char bytes[128];
};

// A collective, as a rank has asked for it.
struct Call {
    std::string name;
    const void *from;
    void *to;
    size_t count;
    int type, root;

    bool same(const Call &other) const {
        return name == other.name && count == other.count && type == other.type && root == other.root;
    }
    size_t bytes() const { return count * (type == F32 ? 4 : 1); }
};

// What all ranks have asked for. `all` is as long as there are ranks.
void run(const std::vector<Call> &all) {
    const Call &first = all[0];
    const size_t ranks = all.size(), count = first.count, bytes = first.bytes();
    const auto sums = [&](size_t at, size_t len) {
        std::vector<float> sum(len, 0.0f);
        for (size_t rank = ranks; rank-- > 0;) {
            const float *x = static_cast<const float *>(all[rank].from) + at;
            for (size_t i = 0; i < len; i++) sum[i] += x[i];
        }
        return sum;
    };
    if (first.name == "AllGather") {
        for (size_t to = 0; to < ranks; to++)
            for (size_t from = 0; from < ranks; from++)
                memcpy(static_cast<char *>(all[to].to) + from * bytes, all[from].from, bytes);
    } else if (first.name == "Broadcast") {
        const void *from = all[size_t(first.root)].from;
        for (const Call &call : all)
            if (call.to != from) memcpy(call.to, from, bytes);
    } else if (first.name == "AllReduce") {
        const std::vector<float> sum = sums(0, count);
        for (const Call &call : all) memcpy(call.to, sum.data(), bytes);
    } else if (first.name == "Reduce") {
        memcpy(all[size_t(first.root)].to, sums(0, count).data(), bytes);
    } else if (first.name == "ReduceScatter") {
        for (size_t rank = 0; rank < ranks; rank++) memcpy(all[rank].to, sums(rank * count, count).data(), bytes);
    }
}

// Where ranks meet: to find each other, for each collective, and to part.
struct Meeting {
    const size_t ranks;
    std::mutex lock;
    std::condition_variable changed;
    std::vector<Call> here;
    std::vector<bool> came, ended;
    size_t count = 0, over = 0;
    std::map<int, std::shared_ptr<Meeting>> parts;

    explicit Meeting(size_t n) : ranks(n), here(n), came(n, false), ended(n, false) {}

    // Waits until all have come with a call; the last one does it.
    bool meet(size_t rank, const Call &call, const std::function<void(const std::vector<Call> &)> &last) {
        std::unique_lock<std::mutex> guard(lock);
        if (ended[rank]) return false;
        const size_t number = over;
        here[rank] = call;
        came[rank] = true;
        if (++count == ranks) {
            bool same = true;
            for (const Call &other : here) same = same && other.same(call);
            // Of calls that differ nobody finds out, as on cards: all wait for ever.
            if (same) {
                last(here);
                count = 0;
                came.assign(ranks, false);
                over++;
                changed.notify_all();
            }
        }
        changed.wait(guard, [&] { return ended[rank] || over != number; });
        return over != number;
    }
    // A rank waits no more. As on cards, others that wait for it do.
    void end(size_t rank) {
        std::lock_guard<std::mutex> guard(lock);
        ended[rank] = true;
        if (came[rank]) count--;
        came[rank] = false;
        changed.notify_all();
    }
};

struct Comm {
    int rank;
    std::shared_ptr<Meeting> meeting;
};

std::mutex world;
std::map<std::string, std::shared_ptr<Meeting>> meetings;
int ids;

std::mutex noting;
void note(const std::string &line) {
    const char *path = getenv("STAND_IN_COLLECTIVES");
    if (!path) return;
    std::lock_guard<std::mutex> guard(noting);
    if (FILE *file = fopen(path, "a")) {
        fprintf(file, "%s\n", line.c_str());
        fclose(file);
    }
}
void note(const Comm *comm, const std::string &what) {
    note("rank " + std::to_string(comm->rank) + " of " + std::to_string(comm->meeting->ranks) + ": " + what);
}

// Calls of a thread between the beginning and the end of a group.
thread_local int depth;
thread_local std::vector<std::function<void()>> grouped;

int queue(const Comm *comm, Call call, StreamOfOthers *stream) {
    const std::string root = call.root < 0 ? "" : " root " + std::to_string(call.root);
    note(comm, call.name + " " + std::to_string(call.count) + (call.type == F32 ? " f32" : " bytes") + root);
    const std::function<void()> go = [rank = size_t(comm->rank), meeting = comm->meeting, call, stream] {
        stream->push([=] { meeting->meet(rank, call, run); });
    };
    if (depth) return grouped.push_back(go), SUCCESS;
    return go(), SUCCESS;
}

int joined(Comm **comm, std::shared_ptr<Meeting> meeting, int rank) {
    meeting->meet(size_t(rank), Call{"Init", nullptr, nullptr, 0, BYTES, -1}, [](const std::vector<Call> &) {});
    *comm = new Comm{rank, meeting};
    return note(*comm, "joined"), SUCCESS;
}

} // namespace

extern "C" {

int ncclGetVersion(int *version) { return *version = int(number("STAND_IN_NCCL_VERSION", 22703)), SUCCESS; }
const char *ncclGetErrorString(int) { return "a stand-in's words"; }
const char *ncclGetLastError(void *) { return ""; }
int ncclGetUniqueId(Id *id) {
    std::lock_guard<std::mutex> guard(world);
    memset(id, 0, sizeof *id);
    snprintf(id->bytes, sizeof id->bytes, "stand-in %d", ++ids);
    return SUCCESS;
}

int ncclCommInitRank(Comm **comm, int ranks, Id id, int rank) {
    if (ranks < 1 || rank < 0 || rank >= ranks || strncmp(id.bytes, "stand-in", 8) != 0) return INVALID_ARGUMENT;
    std::shared_ptr<Meeting> meeting;
    {
        std::lock_guard<std::mutex> guard(world);
        auto &found = meetings[id.bytes];
        if (!found) found = std::make_shared<Meeting>(size_t(ranks));
        meeting = found;
    }
    return meeting->ranks == size_t(ranks) ? joined(comm, meeting, rank) : int(INVALID_USAGE);
}

// All ranks bring their color; those of the same one go on together, in the order of their keys, which are their ranks.
int ncclCommSplit(Comm *comm, int color, int key, Comm **part, void *) {
    if (key != comm->rank) return INVALID_ARGUMENT;
    note(comm, "Split " + std::to_string(color));
    std::vector<int> colors(comm->meeting->ranks);
    const Call mine{"Split", reinterpret_cast<const void *>(intptr_t(color)), colors.data(), 0, BYTES, -1};
    const auto all = [&](const std::vector<Call> &calls) {
        comm->meeting->parts.clear();
        for (size_t to = 0; to < calls.size(); to++)
            for (size_t from = 0; from < calls.size(); from++)
                static_cast<int *>(calls[to].to)[from] = int(reinterpret_cast<intptr_t>(calls[from].from));
        std::map<int, size_t> sizes;
        for (const Call &call : calls) sizes[int(reinterpret_cast<intptr_t>(call.from))]++;
        for (const auto &size : sizes) comm->meeting->parts[size.first] = std::make_shared<Meeting>(size.second);
    };
    if (!comm->meeting->meet(size_t(comm->rank), mine, all)) return INVALID_USAGE;
    int rank = 0;
    for (int other = 0; other < comm->rank; other++) rank += colors[size_t(other)] == color;
    std::shared_ptr<Meeting> found;
    {
        std::lock_guard<std::mutex> guard(comm->meeting->lock);
        found = comm->meeting->parts[color];
    }
    return joined(part, found, rank);
}

int ncclCommAbort(Comm *comm) {
    note(comm, "ended");
    comm->meeting->end(size_t(comm->rank));
    delete comm;
    return SUCCESS;
}
int ncclCommGetAsyncError(Comm *, int *error) { return *error = int(number("STAND_IN_LOST", 0)), SUCCESS; }

int ncclGroupStart() { return depth++, SUCCESS; }
int ncclGroupEnd() {
    if (--depth) return SUCCESS;
    for (const auto &go : grouped) go();
    return grouped.clear(), SUCCESS;
}

int ncclAllGather(const void *from, void *to, size_t count, int type, Comm *comm, StreamOfOthers *stream) {
    return queue(comm, {"AllGather", from, to, count, type, -1}, stream);
}
int ncclAllReduce(const void *from, void *to, size_t count, int type, int, Comm *comm, StreamOfOthers *stream) {
    return queue(comm, {"AllReduce", from, to, count, type, -1}, stream);
}
int ncclReduceScatter(const void *from, void *to, size_t count, int type, int, Comm *comm, StreamOfOthers *stream) {
    return queue(comm, {"ReduceScatter", from, to, count, type, -1}, stream);
}
int ncclBroadcast(const void *from, void *to, size_t count, int type, int root, Comm *comm, StreamOfOthers *stream) {
    return queue(comm, {"Broadcast", from, to, count, type, root}, stream);
}
int ncclReduce(const void *from, void *to, size_t count, int type, int, int root, Comm *comm, StreamOfOthers *stream) {
    return queue(comm, {"Reduce", from, to, count, type, root}, stream);
}
}
