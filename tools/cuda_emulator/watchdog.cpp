// Kernels that do not end: a launch has so many seconds of its thread's processor time (waiting for other processes
// does not count).
//
// A timer sends this thread SIGVTALRM after that time and each time it has passed again. The first signal only sets
// `overdue`. The engine looks at it in every barrier, collective and atomic, and in the checked build at every access,
// and ends the launch there with a finding that names the kernel, the thread and where the others are. A kernel that
// loops without any of these never looks: the second signal finds `overdue` still set. Its handler then makes the
// finding itself and changes where it will return to: to end_here(), at the top of the fibre's stack, and from there
// out of the launch. That the handler allocates for the text is safe where it interrupts a kernel's own code, which
// never allocates.
#include <signal.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "engine.h"

namespace emu {

std::atomic<bool> overdue{false};

namespace {

/// Who runs, for how long, and where the other threads of the block are.
std::string describe(const std::string& where) {
    const Lane& self = *engine.current;
    return "hang: %k" + format(" has not ended after %g s; ", engine.config.seconds) + thread_name(self) + " is " +
           where + whereabouts(*self.block, &self);
}

}  // namespace

void fail_overdue(const Site* site, uintptr_t pc) {
    overdue = false;
    fail(describe(site ? "in " + place(*site) : "at %0"), pc);
}

#ifdef __linux__

struct Watchdog::State {
    timer_t timer;
    struct sigaction before;
};

namespace {

constexpr int kSignal = SIGVTALRM;

void end_here() {
    leave_for_main();
}

void on_time(int, siginfo_t*, void* state) {
    if (!overdue.exchange(true)) return;  // at first the engine looks, at each of its calls
    Lane* const lane = engine.current;
    const uintptr_t pc = interrupted_at(state);
    if (!lane || !pc) return;
    engine.findings.push_back({describe("at %0"), {pc + 1, 0}});
    engine.fatal = true;
    go_on_in(state, *lane, end_here);
}

}  // namespace

Watchdog::Watchdog(double seconds) : state_(new State) {
    overdue = false;
    struct sigaction action = {};
    action.sa_sigaction = on_time;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_RESTART;
    sigaction(kSignal, &action, &state_->before);
    sigevent event = {};
    event.sigev_notify = SIGEV_THREAD_ID;
    event.sigev_signo = kSignal;
    event._sigev_un._tid = pid_t(syscall(SYS_gettid));
    if (timer_create(CLOCK_THREAD_CPUTIME_ID, &event, &state_->timer)) {
        sigaction(kSignal, &state_->before, nullptr);
        state_.reset();
        return;
    }
    const auto spec = [](double s) { return timespec{time_t(s), long((s - double(time_t(s))) * 1e9)}; };
    const itimerspec when{spec(seconds), spec(seconds)};
    timer_settime(state_->timer, 0, &when, nullptr);
}

Watchdog::~Watchdog() {
    if (!state_) return;
    timer_delete(state_->timer);
    sigaction(kSignal, &state_->before, nullptr);
}

#else  // kernels have all the time

struct Watchdog::State {};
Watchdog::Watchdog(double) {}
Watchdog::~Watchdog() = default;

#endif

}  // namespace emu
