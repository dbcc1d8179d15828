// An access beyond an array that ends at a page which faults, or a stack that is full: where it was, and out of there.
//
// While a launch runs SIGSEGV is ours, on a stack of its own (the fibre's may be the one that is full). The handler
// tells from the address what was missed: a guard below a fibre's stack, the page behind an arena, the page behind a
// buffer, or nothing known; and leaves the fibre for good, as fail() does. The source line is that of the instruction;
// where the engine made the access for the kernel (a vector access, a copy that lands) it has noted for whom
// (engine.accessing, engine.landing). A fault outside kernels is not ours: it happens again under the handler that was
// there before.
#include <ucontext.h>

#include "engine.h"

namespace emu {

namespace {

struct sigaction before_ours;
alignas(16) char signal_stack[64 * 1024];

std::string describe_fault(const Lane& lane, const void* address) {
    const std::string thread = thread_name(lane);
    if (in_stacks(address)) return "stack overflow: " + thread + " uses more than 64 KiB";
    if (in_arenas(address))
        return format("out of bounds: access of %s to byte %td of %zu bytes of dynamic shared memory", thread.c_str(),
                      static_cast<const unsigned char*>(address) - lane.block->dynamic, lane.block->dynamic_bytes);
    const Allocation* const a = find_allocation(uintptr_t(address));
    if (!a) return "out of bounds: access of " + thread + " to " + name_address(uintptr_t(address));
    if (!on_this_device(*a))
        return format("wrong device: access of %s, on device %d, to buffer '%s' of device %d", thread.c_str(),
                      engine.origin->device, a->name.c_str(), a->device);
    return format("out of bounds: access of %s to byte %td of buffer '%s' of %zu bytes", thread.c_str(),
                  ptrdiff_t(uintptr_t(address) - a->begin), a->name.c_str(), size_t(a->end - a->begin));
}

void on_fault(int, siginfo_t* info, void* state) {
    const Lane* const lane = is_running ? engine.current : nullptr;
    if (!lane) {
        sigaction(SIGSEGV, &before_ours, nullptr);  // not ours: it happens again, under the old handler
        return;
    }
    const uintptr_t pc = interrupted_at(state) + 1;  // as if a call's return address
    fail(describe_fault(*lane, info->si_addr) + (engine.landing ? ", by " + place(engine.landing->site) : ", at %0"),
         engine.accessing ? engine.accessing : pc);
}

}  // namespace

uintptr_t interrupted_at(const void* state) {
    const mcontext_t& machine = static_cast<const ucontext_t*>(state)->uc_mcontext;
#if defined(__x86_64__)
    return uintptr_t(machine.gregs[REG_RIP]);
#elif defined(__aarch64__)
    return uintptr_t(machine.pc);
#else
    return (void)machine, 0;
#endif
}

FaultHandler::FaultHandler() {
    stack_t own = {};
    own.ss_sp = signal_stack;
    own.ss_size = sizeof signal_stack;
    sigaltstack(&own, &stack_);
    struct sigaction action = {};
    action.sa_sigaction = on_fault;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;  // it does not return
    sigaction(SIGSEGV, &action, &action_);
    before_ours = action_;
}

FaultHandler::~FaultHandler() {
    sigaction(SIGSEGV, &action_, nullptr);
    sigaltstack(&stack_, nullptr);
}

}  // namespace emu
