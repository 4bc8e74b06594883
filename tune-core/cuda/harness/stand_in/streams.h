// Streams and events of the stand-in for a driver. What the driver itself is asked is done at once, by who asks. What another library
// queues (`push`) is done later, by a thread of the stream's own, after STAND_IN_DELAY microseconds: whoever does not wait for it finds
// what was there before.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>

// A place in a stream, once it was recorded; before, it is passed.
class Passed {
    std::mutex lock;
    std::condition_variable changed;
    bool passed = true;

  public:
    void set(bool to) {
        std::lock_guard<std::mutex> guard(lock);
        passed = to;
        changed.notify_all();
    }
    bool now() {
        std::lock_guard<std::mutex> guard(lock);
        return passed;
    }
    void wait() {
        std::unique_lock<std::mutex> guard(lock);
        changed.wait(guard, [this] { return passed; });
    }
};
// The driver keeps an event that is destroyed until it is passed.
using Event = std::shared_ptr<Passed>;

class Stream {
    std::mutex lock;
    std::condition_variable changed;
    std::deque<std::function<void()>> jobs;
    bool busy = false, ends = false;
    std::thread worker;

    void work() {
        const char *delay = getenv("STAND_IN_DELAY");
        std::unique_lock<std::mutex> guard(lock);
        for (;;) {
            changed.wait(guard, [this] { return ends || !jobs.empty(); });
            if (jobs.empty()) return;
            const std::function<void()> job = std::move(jobs.front());
            jobs.pop_front();
            busy = true;
            guard.unlock();
            if (delay) std::this_thread::sleep_for(std::chrono::microseconds(atol(delay)));
            job();
            guard.lock();
            busy = false;
            changed.notify_all();
        }
    }
    // Queues it behind what is there, or says that nothing is.
    bool behind(std::function<void()> job) {
        std::lock_guard<std::mutex> guard(lock);
        if (jobs.empty() && !busy) return false;
        jobs.push_back(std::move(job));
        changed.notify_all();
        return true;
    }

  public:
    Stream() = default;
    Stream(const Stream &) = delete;
    virtual ~Stream() {
        {
            std::lock_guard<std::mutex> guard(lock);
            ends = true;
            changed.notify_all();
        }
        if (worker.joinable()) worker.join();
    }
    // Virtual, so that other libraries find it with the stream and need not be linked to the driver.
    virtual void push(std::function<void()> job) {
        std::lock_guard<std::mutex> guard(lock);
        if (!worker.joinable()) worker = std::thread([this] { work(); });
        jobs.push_back(std::move(job));
        changed.notify_all();
    }
    void finish() {
        std::unique_lock<std::mutex> guard(lock);
        changed.wait(guard, [this] { return jobs.empty() && !busy; });
    }
    void record(const Event &event) {
        event->set(false);
        if (!behind([event] { event->set(true); })) event->set(true);
    }
    void wait(const Event &event) {
        if (event->now() || behind([event] { event->wait(); })) return;
        // Nothing is before it: what comes next is done by who asks, who waits therefore, or by the thread that there will be.
        event->wait();
    }
};
