// A stream of the stand-in for a driver, as the stand-ins for other libraries see it.
#pragma once

#include <functional>

struct StreamOfOthers {
    virtual ~StreamOfOthers() = default;
    // Queues work that may wait for other streams, of other cards, too. It is done later, by a thread of the stream's own. Virtual, so that
    // other libraries find it with the stream and need not be linked to the driver.
    virtual void push(std::function<void()> work) = 0;
};
