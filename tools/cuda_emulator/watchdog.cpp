// Kernels that do not end: a launch has so many seconds of its thread's processor time (waiting for other processes
// does not count).
//
// A timer sends this thread SIGVTALRM after that time and each time it has passed again. The first signal only sets
// `overdue`. The engine looks at it in every barrier, collective and atomic, and in the checked build at every access,
// and ends the launch there with a finding that names the kernel, the thread and where the others are. A kernel that
// loops without any of these never looks: the second signal finds `overdue` still set. Its handler then makes the
// finding itself and leaves the fibre for good. That it allocates for the text is safe where it interrupts a kernel's
// own code, which never allocates.
#include <sys/syscall.h>
#include <unistd.h>

#include "engine.h"

namespace emu {

std::atomic<bool> overdue{false};

void fail_overdue(const Site* site, uintptr_t pc) {
    overdue = false;
    const Lane& self = *engine.current;
    fail("hang: %k" + format(" has not ended after %g s; ", engine.config.seconds) + thread_name(self) + " is " +
             (site ? "in " + place(*site) : "at %0") + whereabouts(*self.block, &self),
         pc);
}

static void on_time(int, siginfo_t*, void* state) {
    if (!overdue.exchange(true)) return;  // at first the engine looks, at each of its calls
    if (engine.current) fail_overdue(nullptr, interrupted_at(state) + 1);
}

Watchdog::Watchdog(double seconds) {
    overdue = false;
    struct sigaction action = {};
    action.sa_sigaction = on_time;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_RESTART | SA_NODEFER;
    sigaction(SIGVTALRM, &action, &action_);
    sigevent event = {};
    event.sigev_notify = SIGEV_THREAD_ID;
    event.sigev_signo = SIGVTALRM;
    event._sigev_un._tid = pid_t(syscall(SYS_gettid));
    if (timer_create(CLOCK_THREAD_CPUTIME_ID, &event, &timer_)) throw std::runtime_error("no timer for the watchdog");
    const auto spec = [](double s) { return timespec{time_t(s), long((s - double(time_t(s))) * 1e9)}; };
    const itimerspec when{spec(seconds), spec(seconds)};
    timer_settime(timer_, 0, &when, nullptr);
}

Watchdog::~Watchdog() {
    timer_delete(timer_);
    sigaction(SIGVTALRM, &action_, nullptr);
}

}  // namespace emu
