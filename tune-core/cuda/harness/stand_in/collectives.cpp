// What of NCCL is used, between threads of one process: each is a rank. What is queued is done when all ranks have come to it, by the last
// of them, which has the memory of all; sums are made from the last rank down, so that nobody takes them for those of the processor. Where
// STAND_IN_MEETINGS names a folder, ranks are processes, which meet by files there, and each does its own part. Calls are written to the
// file that STAND_IN_COLLECTIVES names. STAND_IN_LOST is the error that NCCL has met meanwhile.
#include "streams.h"

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <fstream>
#include <iterator>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <sys/stat.h>
#include <thread>
#include <unistd.h>
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

    explicit Meeting(size_t n) : ranks(n) {}
    virtual ~Meeting() = default;
    // Waits until all have come with a call, and does it; false if this rank has ended.
    virtual bool meet(size_t rank, const Call &call) = 0;
    // The meeting of those that bring the same color, and how many of them come before this rank; none if this one has ended.
    virtual std::shared_ptr<Meeting> split(size_t rank, int color, int &before) = 0;
    // What is sent is there for the other to be received, in order; nobody waits for that.
    virtual void send(size_t from, size_t to, const char *bytes, size_t count) = 0;
    virtual void receive(size_t from, size_t to, char *bytes, size_t count) = 0;
    // A rank waits no more. As on cards, others that wait for it do.
    virtual void end(size_t rank) = 0;
};

// Between threads.
struct InMemory final : Meeting {
    std::mutex lock;
    std::condition_variable changed;
    std::vector<Call> here;
    std::vector<bool> came, ended;
    size_t count = 0, over = 0;
    std::map<int, std::shared_ptr<InMemory>> parts;
    std::map<std::pair<size_t, size_t>, std::deque<std::vector<char>>> mail;

    explicit InMemory(size_t n) : Meeting(n), here(n), came(n, false), ended(n, false) {}

    bool meet(size_t rank, const Call &call) override { return meet(rank, call, run); }
    // The last one does it.
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
    std::shared_ptr<Meeting> split(size_t rank, int color, int &before) override {
        std::vector<int> colors(ranks);
        const Call mine{"Split", reinterpret_cast<const void *>(intptr_t(color)), colors.data(), 0, BYTES, -1};
        const auto all = [&](const std::vector<Call> &calls) {
            parts.clear();
            for (size_t to = 0; to < calls.size(); to++)
                for (size_t from = 0; from < calls.size(); from++)
                    static_cast<int *>(calls[to].to)[from] = int(reinterpret_cast<intptr_t>(calls[from].from));
            std::map<int, size_t> sizes;
            for (const Call &call : calls) sizes[int(reinterpret_cast<intptr_t>(call.from))]++;
            for (const auto &size : sizes) parts[size.first] = std::make_shared<InMemory>(size.second);
        };
        if (!meet(rank, mine, all)) return nullptr;
        for (size_t other = 0; other < rank; other++) before += colors[other] == color;
        std::lock_guard<std::mutex> guard(lock);
        return parts[color];
    }
    void send(size_t from, size_t to, const char *bytes, size_t count) override {
        std::lock_guard<std::mutex> guard(lock);
        mail[{from, to}].emplace_back(bytes, bytes + count);
        changed.notify_all();
    }
    void receive(size_t from, size_t to, char *bytes, size_t count) override {
        std::unique_lock<std::mutex> guard(lock);
        auto &box = mail[{from, to}];
        changed.wait(guard, [&] { return ended[to] || !box.empty(); });
        // Of another number of bytes nobody gets any, and all wait for ever.
        changed.wait(guard, [&] { return ended[to] || box.front().size() == count; });
        if (ended[to]) return;
        memcpy(bytes, box.front().data(), count);
        box.pop_front();
    }
    void end(size_t rank) override {
        std::lock_guard<std::mutex> guard(lock);
        ended[rank] = true;
        if (came[rank]) count--;
        came[rank] = false;
        changed.notify_all();
    }
};

// Between processes: each call of a rank is a file, with what others need of it.
struct InFiles final : Meeting {
    const std::string path;
    size_t calls = 0;
    std::map<std::pair<size_t, size_t>, size_t> sent, received;
    std::atomic<bool> ended{false};

    InFiles(std::string at, size_t n) : Meeting(n), path(std::move(at)) {}

    void write(const std::string &name, const std::string &text) const {
        const std::string to = path + "." + name, unfinished = to + "." + std::to_string(getpid());
        std::ofstream(unfinished, std::ios::binary) << text;
        rename(unfinished.c_str(), to.c_str());
    }
    // Waits for a file; false if this rank has ended.
    bool read(const std::string &name, std::string &text) const {
        struct stat found;
        while (stat((path + "." + name).c_str(), &found)) {
            if (ended) return false;
            std::this_thread::sleep_for(std::chrono::microseconds(100));
        }
        std::ifstream file(path + "." + name, std::ios::binary);
        text.assign(std::istreambuf_iterator<char>(file), {});
        return true;
    }
    // What all bring to the next call.
    bool gather(size_t rank, const std::string &mine, std::vector<std::string> &all) {
        const auto name = [](size_t call, size_t of) { return std::to_string(call) + "." + std::to_string(of); };
        const size_t number = calls++;
        write(name(number, rank), mine);
        for (size_t other = 0; other < ranks; other++)
            if (!read(name(number, other), all[other])) return false;
        // Whoever is here has read what was there for the last call.
        if (number) unlink((path + "." + name(number - 1, rank)).c_str());
        return true;
    }
    bool meet(size_t rank, const Call &call) override {
        const size_t bytes = call.bytes(), share = call.name == "ReduceScatter" ? bytes * ranks : bytes;
        const bool has = call.from && (call.name != "Broadcast" || size_t(call.root) == rank);
        const std::string head =
            call.name + " " + std::to_string(call.count) + " " + std::to_string(call.type) + " " + std::to_string(call.root) + "\n";
        std::vector<std::string> all(ranks);
        if (!gather(rank, head + (has ? std::string(static_cast<const char *>(call.from), share) : ""), all)) return false;
        std::vector<Call> here(ranks, call);
        std::vector<std::vector<char>> elsewhere(ranks);
        for (size_t other = 0; other < ranks; other++) {
            // As between threads: of calls that differ nobody finds out.
            while (all[other].compare(0, head.size(), head)) {
                if (ended) return false;
                std::this_thread::sleep_for(std::chrono::milliseconds(1));
            }
            here[other].from = all[other].data() + head.size();
            if (other == rank) continue;
            elsewhere[other].resize(bytes * ranks);
            here[other].to = elsewhere[other].data();
        }
        return run(here), true;
    }
    std::shared_ptr<Meeting> split(size_t rank, int color, int &before) override {
        const size_t number = calls;
        std::vector<std::string> all(ranks);
        const std::string mine = std::to_string(color);
        if (!gather(rank, mine, all)) return nullptr;
        size_t size = 0;
        for (size_t other = 0; other < ranks; other++) {
            size += all[other] == mine;
            before += other < rank && all[other] == mine;
        }
        return std::make_shared<InFiles>(path + ".split" + std::to_string(number) + "." + mine, size);
    }
    static std::string letter(size_t from, size_t to, size_t number) {
        return "from" + std::to_string(from) + "to" + std::to_string(to) + "." + std::to_string(number);
    }
    void send(size_t from, size_t to, const char *bytes, size_t count) override {
        write(letter(from, to, sent[{from, to}]++), std::string(bytes, count));
    }
    void receive(size_t from, size_t to, char *bytes, size_t count) override {
        const std::string name = letter(from, to, received[{from, to}]++);
        std::string text;
        if (!read(name, text)) return;
        while (text.size() != count && !ended) std::this_thread::sleep_for(std::chrono::milliseconds(1));
        if (text.size() == count) memcpy(bytes, text.data(), count);
        unlink((path + "." + name).c_str());
    }
    void end(size_t) override { ended = true; }
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

int queue(std::function<void()> work, StreamOfOthers *stream) {
    const std::function<void()> go = [work, stream] { stream->push(work); };
    if (depth) return grouped.push_back(go), SUCCESS;
    return go(), SUCCESS;
}
int queue(const Comm *comm, Call call, StreamOfOthers *stream) {
    const std::string root = call.root < 0 ? "" : " root " + std::to_string(call.root);
    note(comm, call.name + " " + std::to_string(call.count) + (call.type == F32 ? " f32" : " bytes") + root);
    return queue([rank = size_t(comm->rank), meeting = comm->meeting, call] { meeting->meet(rank, call); }, stream);
}

int joined(Comm **comm, std::shared_ptr<Meeting> meeting, int rank) {
    meeting->meet(size_t(rank), Call{"Init", nullptr, nullptr, 0, BYTES, -1});
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
    snprintf(id->bytes, sizeof id->bytes, "stand-in %d-%d", int(getpid()), ++ids);
    return SUCCESS;
}

int ncclCommInitRank(Comm **comm, int ranks, Id id, int rank) {
    if (ranks < 1 || rank < 0 || rank >= ranks || strncmp(id.bytes, "stand-in", 8) != 0) return INVALID_ARGUMENT;
    std::shared_ptr<Meeting> meeting;
    if (const char *folder = getenv("STAND_IN_MEETINGS")) {
        meeting = std::make_shared<InFiles>(folder + std::string("/") + (id.bytes + 9), size_t(ranks));
    } else {
        std::lock_guard<std::mutex> guard(world);
        auto &found = meetings[id.bytes];
        if (!found) found = std::make_shared<InMemory>(size_t(ranks));
        meeting = found;
    }
    return meeting->ranks == size_t(ranks) ? joined(comm, meeting, rank) : int(INVALID_USAGE);
}

// All ranks bring their color; those of the same one go on together, in the order of their keys, which are their ranks.
int ncclCommSplit(Comm *comm, int color, int key, Comm **part, void *) {
    if (key != comm->rank) return INVALID_ARGUMENT;
    note(comm, "Split " + std::to_string(color));
    int rank = 0;
    const std::shared_ptr<Meeting> found = comm->meeting->split(size_t(comm->rank), color, rank);
    if (!found) return INVALID_USAGE;
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
int ncclSend(const void *from, size_t count, int type, int peer, Comm *comm, StreamOfOthers *stream) {
    if (type != BYTES || peer < 0 || size_t(peer) >= comm->meeting->ranks) return INVALID_ARGUMENT;
    note(comm, "Send " + std::to_string(count) + " bytes to " + std::to_string(peer));
    const auto work = [=, rank = size_t(comm->rank), meeting = comm->meeting] {
        meeting->send(rank, size_t(peer), static_cast<const char *>(from), count);
    };
    return queue(work, stream);
}
int ncclRecv(void *to, size_t count, int type, int peer, Comm *comm, StreamOfOthers *stream) {
    if (type != BYTES || peer < 0 || size_t(peer) >= comm->meeting->ranks) return INVALID_ARGUMENT;
    note(comm, "Recv " + std::to_string(count) + " bytes from " + std::to_string(peer));
    const auto work = [=, rank = size_t(comm->rank), meeting = comm->meeting] {
        meeting->receive(size_t(peer), rank, static_cast<char *>(to), count);
    };
    return queue(work, stream);
}
}
