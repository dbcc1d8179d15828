// An access beyond an array that ends at a page which faults, or a stack that is full: where it was, and out of there.
//
// While a launch runs SIGSEGV is ours, on a stack of its own (the fibre's may be the one that is full). The handler
// tells from the address what was missed: a guard below a fibre's stack, the page behind an arena, the page behind a
// buffer, or nothing known. It then has the fibre go on in leave_after_fault() instead of in the instruction that
// faulted, which records the finding and gives up the launch. The source line is that of the instruction; where the
// engine made the access for the kernel (a vector access, a copy that lands) it has noted for whom (engine.accessing,
// engine.landing). A fault outside kernels is not ours: it happens again under the handler that was there before.
#include <signal.h>

#include "engine.h"

namespace emu {

#if !defined(EMU_UCONTEXT) && defined(__linux__) && (defined(__x86_64__) || defined(__aarch64__))

struct FaultHandler::Before {
    struct sigaction action;
    stack_t stack;
};

namespace {

struct sigaction before_ours;
Finding fault;
alignas(16) char signal_stack[64 * 1024];

void leave_after_fault() {
    engine.findings.push_back(fault);
    engine.fatal = true;
    leave_for_main();
}

void describe_fault(const Lane& lane, const void* address, uintptr_t pc) {
    const std::string thread = thread_name(lane);
    if (in_stacks(address))
        fault.text = "stack overflow: " + thread + " uses more than 64 KiB";
    else if (in_arenas(address))
        fault.text =
            format("out of bounds: access of %s to byte %td of %zu bytes of dynamic shared memory", thread.c_str(),
                   static_cast<const unsigned char*>(address) - lane.block->dynamic, lane.block->dynamic_bytes);
    else if (const Allocation* a = find_allocation(uintptr_t(address)); a && !on_this_device(*a))
        fault.text = format("wrong device: access of %s, on device %d, to buffer '%s' of device %d", thread.c_str(),
                            engine.origin->device, a->name.c_str(), a->device);
    else if (a)
        fault.text = format("out of bounds: access of %s to byte %td of buffer '%s' of %zu bytes", thread.c_str(),
                            ptrdiff_t(uintptr_t(address) - a->begin), a->name.c_str(), size_t(a->end - a->begin));
    else
        fault.text = "out of bounds: access of " + thread + " to " + name_address(uintptr_t(address));
    fault.text += engine.landing ? ", by " + place(engine.landing->site) : ", at %0";
    fault.pcs[0] = engine.accessing ? engine.accessing : pc + 1;  // as if a call's return address
}

void on_fault(int, siginfo_t* info, void* state) {
    const Lane* const lane = is_running ? engine.current : nullptr;
    if (!lane) {
        sigaction(SIGSEGV, &before_ours, nullptr);  // not ours: it happens again, under the old handler
        return;
    }
    describe_fault(*lane, info->si_addr, interrupted_at(state));
    go_on_in(state, *lane, leave_after_fault);
}

}  // namespace

uintptr_t interrupted_at(void* state) {
    const mcontext_t& machine = static_cast<ucontext_t*>(state)->uc_mcontext;
#if defined(__x86_64__)
    return uintptr_t(machine.gregs[REG_RIP]);
#else
    return uintptr_t(machine.pc);
#endif
}

void go_on_in(void* state, const Lane& lane, void (*what)()) {
    mcontext_t& machine = static_cast<ucontext_t*>(state)->uc_mcontext;
    const char* const top =
        engine.stacks + (size_t(lane.block->slot) * kMaxThreads + unsigned(lane.id) + 1) * kStackPitch;
#if defined(__x86_64__)
    machine.gregs[REG_RIP] = greg_t(uintptr_t(what));
    machine.gregs[REG_RSP] = greg_t(uintptr_t(top - 64 - 8));
#else
    machine.pc = uintptr_t(what);
    machine.sp = uintptr_t(top - 64);
#endif
}

FaultHandler::FaultHandler() : before_(new Before) {
    stack_t own = {};
    own.ss_sp = signal_stack;
    own.ss_size = sizeof signal_stack;
    sigaltstack(&own, &before_->stack);
    struct sigaction action = {};
    action.sa_sigaction = on_fault;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigaction(SIGSEGV, &action, &before_->action);
    before_ours = before_->action;
}

FaultHandler::~FaultHandler() {
    sigaction(SIGSEGV, &before_->action, nullptr);
    sigaltstack(&before_->stack, nullptr);
}

#else  // faults end the process

struct FaultHandler::Before {};
FaultHandler::FaultHandler() = default;
FaultHandler::~FaultHandler() = default;
uintptr_t interrupted_at(void*) {
    return 0;
}
void go_on_in(void*, const Lane&, void (*)()) {}

#endif

}  // namespace emu
