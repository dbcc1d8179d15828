// The machine under launch(): devices, streams, events, copies and errors as CUDA has them, within one process.
//
// A stream is a queue of work, and work begins when a rule makes it: lazily (Config::lazy) when somebody waits for it,
// the host or work of another stream, and then in the order of its own stream; else at once, when it is given. A lazy
// run is as late as CUDA allows; in random order some of the work goes earlier, drawn from the seed. Either way `after`
// has what a piece of work waits for, and its clock, with what the host has waited for, what is ordered before it: the
// checked build finds what is not, whatever ran first. No stream waits for another by itself, as torch's do not.
//
// Copies. Pageable host memory is copied away within the call (to the device) or waited for (from it); memory of
// allocate_host is read and written when the copy runs, so that whoever uses it too early is seen. Freed device memory
// goes when its stream has come there (what torch's allocator does), and faults from then on.
//
// Devices. Each has its own memory, which kernels of others must not touch, a default stream and function attributes;
// host threads have a current device each. What goes wrong in a kernel is thrown at the launch; lazily it becomes the
// device's error, which all later calls return until reset_device(). After cudaFuncSetAttribute other threads may
// go first.
//
// Graphs. What a stream is given while it records is not done but noted, and so are its events; a stream that waits for
// one of them records, too, and has to be waited for before the end. Nobody may wait for such a stream meanwhile.
// replay() gives all of it again, to the streams that it was noted of, the first being the one that replays.
//
// One lock for all of it, also while kernels run: nothing here calls Python.
#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <thread>

#include "engine.h"

using emu::Clock;
using emu::Error;
using emu::Origin;

struct Graph;

struct Event {
    CUstream_st* stream;
    uint64_t number;
    Clock clock;
    Graph* graph = nullptr;  // that its stream recorded
};

struct Graph {
    enum Kind { kWork, kRecord, kWait };
    struct Step {
        CUstream_st* stream;
        Kind kind;
        std::function<void(const Origin&)> run;
        size_t event;
    };
    size_t number;
    std::vector<CUstream_st*> streams;            // the one that began, and those that joined
    std::map<CUstream_st*, CUstream_st*> places;  // where a replay has their work: it is of none of these streams
    std::vector<Step> steps;
};

struct CUstream_st {
    struct Work {
        std::function<void(const Origin&)> run;
        std::vector<Event> after;
        bool is_release;
        Origin origin;
    };
    unsigned id;
    int device;
    uint64_t given = 0, done = 0;
    Clock clock;                 // of what was given last
    std::vector<Event> waiting;  // for what is given next
    Graph* graph = nullptr;      // while it records
    std::deque<Work> queue;
};

namespace {

struct Device {
    CUstream_st* stream;  // the default one
    cudaError_t error = cudaSuccess;
    std::string why;
};

std::mutex machine;
std::condition_variable turn;
std::thread::id latest_caller;
bool several_threads = false;
std::vector<std::unique_ptr<CUstream_st>> streams;
std::deque<Device> devices;
std::vector<Event> events;
std::deque<Graph> graphs;
std::map<std::pair<const void*, int>, int> most_shared_memory;  // of kernel and device, as set
std::map<uintptr_t, std::pair<std::shared_ptr<void>, size_t>> pinned;
std::vector<uintptr_t> released;  // of them, while there is work that may use it
Clock host;                       // what it has waited for
const emu::Counts kNone = {{"launches", 0}, {"uploads", 0}, {"downloads", 0},   {"fills", 0},
                           {"events", 0},   {"waits", 0},   {"allocations", 0}, {"graphs", 0}};
emu::Counts counted = kNone;
emu::Random generator;
thread_local int current_device = 0;
thread_local cudaError_t last_error = cudaSuccess;

cudaError_t failed(cudaError_t error) {
    if (error) last_error = error;
    return error;
}

void join(Clock& a, const Clock& b) {
    a.resize(std::max(a.size(), b.size()));
    for (size_t s = 0; s < b.size(); ++s) a[s] = std::max(a[s], b[s]);
}

CUstream_st* add_stream(int device) {
    streams.push_back(std::make_unique<CUstream_st>());
    CUstream_st& stream = *streams.back();
    stream.id = unsigned(streams.size() - 1);
    stream.device = device;
    return &stream;
}

Device& current() {
    while (int(devices.size()) <= current_device) devices.push_back({add_stream(int(devices.size())), cudaSuccess, ""});
    return devices[size_t(current_device)];
}

void run_to(CUstream_st& stream, uint64_t number);

void run_first(CUstream_st& stream) {
    const CUstream_st::Work work = std::move(stream.queue.front());
    stream.queue.pop_front();
    for (const Event& e : work.after) run_to(*e.stream, e.number);
    stream.done = work.origin.clock[stream.id];
    Device& device = devices[size_t(stream.device)];
    if (device.error && !work.is_release) return;
    try {
        work.run(work.origin);
    } catch (const Error& error) {
        if (!emu::configuration().lazy) throw;
        const std::string text = error.what();
        const auto is = [&](const char* kind) { return text.rfind(kind, 0) == 0; };
        device.why = text;
        device.error = is("out of bounds") || is("wrong device") ? cudaErrorIllegalAddress
                       : is("misaligned")                        ? cudaErrorMisalignedAddress
                       : is("hang")                              ? cudaErrorLaunchTimeout
                                                                 : cudaErrorLaunchFailure;
    }
}

void run_to(CUstream_st& stream, uint64_t number) {
    while (stream.done < number) run_first(stream);
}

void finish(int device = -1) {
    for (size_t s = 0; s < streams.size(); ++s)
        if (device < 0 || streams[s]->device == device) run_to(*streams[s], streams[s]->given);
}

/// Gives work to a stream; `is_release`: to be done also where an error sticks to the device.
void give(CUstream_st& stream, std::function<void(const Origin&)> run, std::vector<Event> after = {},
          bool is_release = false) {
    if (stream.graph && !is_release) return stream.graph->steps.push_back({&stream, Graph::kWork, std::move(run), 0});
    after.insert(after.end(), stream.waiting.begin(), stream.waiting.end());
    stream.waiting.clear();
    join(stream.clock, host);
    for (const Event& e : after) join(stream.clock, e.clock);
    stream.clock.resize(std::max<size_t>(stream.clock.size(), stream.id + 1));
    stream.clock[stream.id] = ++stream.given;
    CUstream_st::Work work{std::move(run), std::move(after), is_release, {}};
    work.origin.device = stream.device;
    work.origin.stream = stream.id;
    work.origin.clock = stream.clock;
    stream.queue.push_back(std::move(work));
    if (!emu::configuration().lazy) run_to(stream, stream.given);
}

/// The host stands still until all that was given is done.
void wait_for(CUstream_st& stream) {
    if (stream.graph) throw Error("operation not permitted when stream is capturing");
    ++counted["waits"];
    if (!stream.waiting.empty()) give(stream, [](const Origin&) {});  // and for what it would wait for
    run_to(stream, stream.given);
    join(host, stream.clock);
}

/// A call of the interface: alone, and other threads know of it; with its device current.
struct Call {
    std::unique_lock<std::mutex> lock{machine};
    const int before = current_device;
    CUstream_st* const stream;

    explicit Call(emu::Place where = {}) : stream(where.stream) {
        if (where.device >= 0) check(cudaSetDevice(where.device));
        const auto self = std::this_thread::get_id();
        several_threads |= latest_caller != std::thread::id() && latest_caller != self;
        latest_caller = self;
        turn.notify_all();
        const emu::Config& config = emu::configuration();
        if (!config.lazy || config.order != emu::Order::kRandom || streams.empty() || generator.draw(3)) return;
        CUstream_st& some = *streams[generator.draw(streams.size())];
        if (!some.queue.empty()) run_first(some);
    }
    ~Call() { current_device = before; }

    static void check(cudaError_t status) {
        if (status) throw Error(cudaGetErrorString(status));
    }
    /// Why nothing can be given to the stream, or what it is.
    cudaError_t find(CUstream_st*& found) const {
        Device& device = current();
        found = stream ? stream : device.stream;
        const auto is_it = [&](const auto& s) { return s.get() == found && s->device == current_device; };
        if (std::none_of(streams.begin(), streams.end(), is_it)) return failed(cudaErrorInvalidResourceHandle);
        return failed(device.error);
    }
    CUstream_st& get() const {
        CUstream_st* found;
        check(find(found));
        return *found;
    }

    /// Until another thread has made a call, or none wants to.
    void let_others_go() {
        if (!several_threads || !emu::configuration().lazy) return;
        turn.wait_for(lock, std::chrono::milliseconds(20), [] { return latest_caller != std::this_thread::get_id(); });
    }
};

bool is_pinned(uintptr_t p, size_t bytes) {
    const auto next = pinned.upper_bound(p);
    return next != pinned.begin() && p + bytes <= std::prev(next)->first + std::prev(next)->second.second;
}

emu::Allocation* device_memory(uintptr_t p) {
    emu::Allocation* const a = emu::find_allocation(p);
    return a && p >= a->begin && p <= a->end ? a : nullptr;
}

/// Of a copy, fill or release, when it runs.
void touch(uintptr_t p, size_t bytes, bool writes, const Origin& origin, const char* what) {
    emu::Allocation* const a = device_memory(p);
    if (!a || p + bytes > a->end)
        throw Error(emu::format("out of bounds: %s of %zu bytes at %s", what, bytes, emu::name_address(p).c_str()));
    if (emu::kChecked) emu::check::range_touched(*a, p, p + bytes, writes, origin, what);
}

}  // namespace

namespace emu {

cudaError_t start(const Shape& shape, const Task& task, cudaStream_t stream) {
    const std::shared_ptr<void> arguments(task.arguments, task.destroy);
    const Call call({-1, stream});
    CUstream_st* where;
    if (const cudaError_t error = call.find(where)) return error;
    engine.findings.clear();
    check_shape(shape);
    check_shared(0, shape.smem);
    const auto set = most_shared_memory.find({shape.kernel, current_device});
    if (shape.smem > (set == most_shared_memory.end() ? kStaticLimit : size_t(set->second)))
        return failed(cudaErrorInvalidValue);
    ++counted["launches"];
    give(*where, [shape, task, arguments](const Origin& origin) {
        Origin own = origin;
        own.arguments = task.arguments;
        own.argument_bytes = task.bytes;
        run(shape, task, own);
    });
    return cudaSuccess;
}

void configure(const Config& config) {
    Call call;
    finish();
    set_config(config);
    generator.seed(config.seed);
    several_threads = false;
    for (Device& device : devices) device.error = cudaSuccess;
}

CUstream_st* new_stream(int device) {
    const Call call({device, nullptr});
    current();
    return add_stream(device);
}

void synchronize(Place where) {
    const Call call(where);
    wait_for(call.get());
    call.get();
}

size_t record(Place where) {
    const Call call(where);
    CUstream_st& stream = call.get();
    ++counted["events"];
    if (stream.graph)
        stream.graph->steps.push_back({&stream, Graph::kRecord, nullptr, events.size()});
    else
        give(stream, [](const Origin&) {});  // it also comes after what the stream waits for
    events.push_back({&stream, stream.given, stream.clock, stream.graph});
    return events.size() - 1;
}
void wait(Place where, size_t event) {
    const Call call(where);
    CUstream_st& stream = call.get();
    const Event& e = events.at(event);
    const bool is_over = e.graph && e.stream->graph != e.graph;
    if (is_over || (stream.graph && e.graph != stream.graph))
        throw Error("dependency created on uncaptured work in another stream");
    if (!e.graph) return stream.waiting.push_back(e);
    if (!stream.graph) e.graph->streams.push_back(&stream);
    stream.graph = e.graph;
    stream.graph->steps.push_back({&stream, Graph::kWait, nullptr, event});
}

void begin_graph(Place where) {
    const Call call(where);
    CUstream_st& stream = call.get();
    if (stream.graph) throw Error("operation not permitted when stream is capturing");
    graphs.push_back({graphs.size(), {&stream}, {}, {}});
    stream.graph = &graphs.back();
}

size_t end_graph(Place where) {
    const Call call(where);
    Graph* const graph = call.get().graph;
    if (!graph || graph->streams[0] != &call.get()) throw Error("the stream was not capturing");
    using Seen = std::map<CUstream_st*, size_t>;  // of each stream so many steps
    std::map<CUstream_st*, Seen> seen;
    std::map<size_t, Seen> at;
    for (size_t i = 0; i < graph->steps.size(); ++i) {
        const Graph::Step& step = graph->steps[i];
        Seen& own = seen[step.stream];
        if (step.kind == Graph::kWork) own[step.stream] = i + 1;
        if (step.kind == Graph::kRecord) at[step.event] = own;
        if (step.kind == Graph::kWait)
            for (const auto& [stream, n] : at[step.event]) own[stream] = std::max(own[stream], n);
    }
    for (CUstream_st* stream : graph->streams) stream->graph = nullptr;
    for (CUstream_st* stream : graph->streams)
        if (seen[graph->streams[0]][stream] < seen[stream][stream]) throw Error("capturing stream has unjoined work");
    return graph->number;
}

void replay(Place where, size_t number) {
    const Call call(where);
    CUstream_st& first = call.get();
    Graph& graph = graphs.at(number);
    ++counted["graphs"];
    std::map<size_t, Event> recorded;
    for (const Graph::Step& step : graph.steps) {
        CUstream_st*& place = graph.places[step.stream];
        if (step.stream == graph.streams[0]) place = &first;
        if (!place) place = add_stream(step.stream->device);
        CUstream_st& stream = *place;
        if (step.kind == Graph::kWait) {
            stream.waiting.push_back(recorded.at(step.event));
            continue;
        }
        give(stream, step.kind == Graph::kWork ? step.run : [](const Origin&) {});
        if (step.kind == Graph::kRecord) recorded[step.event] = {&stream, stream.given, stream.clock};
    }
}

void fill(uintptr_t p, int value, size_t bytes, Place where) {
    const Call call(where);
    ++counted["fills"];
    give(call.get(), [=](const Origin& origin) {
        touch(p, bytes, true, origin, "a fill");
        std::memset(reinterpret_cast<void*>(p), value, bytes);
    });
}

void copy(uintptr_t to, uintptr_t from, size_t bytes, Place where) {
    const Call call(where);
    CUstream_st& stream = call.get();
    const bool to_device = device_memory(to), from_device = device_memory(from);
    counted["uploads"] += !from_device;
    counted["downloads"] += !to_device;
    const void* source = reinterpret_cast<const void*>(from);
    std::shared_ptr<void> staged;
    if (!from_device && !is_pinned(from, bytes)) {
        staged.reset(std::malloc(bytes), std::free);
        source = std::memcpy(staged.get(), source, bytes);
        counted["waits"] += bytes > 64 * 1024;  // smaller ones go through the driver's own buffer
    }
    give(stream, [=](const Origin& origin) {
        (void)staged;
        if (from_device) touch(from, bytes, false, origin, "a copy from it");
        if (to_device) touch(to, bytes, true, origin, "a copy to it");
        std::memmove(reinterpret_cast<void*>(to), source, bytes);
    });
    if (!to_device && !is_pinned(to, bytes)) wait_for(stream);
    call.get();
}

void reset_device(int device) {
    const Call call({device, nullptr});
    finish(device);
    current().error = cudaSuccess;
}

void* allocate(size_t bytes, const std::string& name, Place where) {
    const Call call(where);
    CUstream_st& stream = call.get();
    ++counted["allocations"];
    const size_t limit = configuration().memory;
    if (limit && device_bytes(current_device) + bytes > limit) finish(current_device);  // what is being freed
    if (limit && device_bytes(current_device) + bytes > limit) return nullptr;
    return map_memory(bytes, name, current_device, &stream);
}

void release(void* p) {
    const Call call;
    Allocation* const a = device_memory(uintptr_t(p));
    if (!a) return;
    std::vector<Event> after;
    for (CUstream_st* s : a->shared_with) after.push_back({s, s->given, s->clock});
    Device& device = devices[size_t(a->device)];
    try {
        const auto free = [p, &device](const Origin& origin) {
            const Allocation its = *device_memory(uintptr_t(p));
            if (!device.error) touch(its.begin, its.end - its.begin, true, origin, "it is freed");
            unmap_memory(uintptr_t(p));
        };
        give(*a->stream, free, std::move(after), /*is_release=*/true);
    } catch (const Error& error) {  // this may be called by a destructor: the next call on the device says so
        device.error = cudaErrorLaunchFailure;
        device.why = error.what();
    }
}

void share(uintptr_t p, Place where) {
    const Call call(where);
    Allocation* const a = device_memory(p);
    if (a && &call.get() != a->stream) a->shared_with.push_back(&call.get());
}

size_t free_memory(int device) {
    const Call call({device, nullptr});
    const size_t limit = configuration().memory ? configuration().memory : size_t(1) << 40;
    return limit - std::min(limit, device_bytes(device));
}

void* allocate_host(size_t bytes) {
    const Call call;
    void* const p = std::memset(std::malloc(bytes + 1), 0xff, bytes + 1);
    pinned[uintptr_t(p)] = {std::shared_ptr<void>(p, std::free), bytes};
    return p;
}
void release_host(void* p) {
    const Call call;
    released.push_back(uintptr_t(p));
    if (std::any_of(streams.begin(), streams.end(), [](const auto& s) { return !s->queue.empty(); })) return;
    for (const uintptr_t address : released) pinned.erase(address);
    released.clear();
}

Counts counts() {
    Call call;
    return counted;
}
void reset_counts() {
    Call call;
    counted = kNone;
}

}  // namespace emu

// ---- CUDA's names ----

const char* cudaGetErrorString(cudaError_t status) {
    static thread_local std::string text;
    text = status == cudaSuccess                      ? "no error"
           : status == cudaErrorInvalidValue          ? "invalid argument"
           : status == cudaErrorInvalidDevice         ? "invalid device ordinal"
           : status == cudaErrorInvalidResourceHandle ? "invalid resource handle"
           : status == cudaErrorIllegalAddress        ? "an illegal memory access was encountered"
           : status == cudaErrorLaunchTimeout         ? "the launch timed out and was terminated"
           : status == cudaErrorMisalignedAddress     ? "misaligned address"
                                                      : "unspecified launch failure";
    for (const Device& device : devices)
        if (status && device.error == status) text += ": " + device.why;
    return text.c_str();
}
cudaError_t cudaGetLastError() {
    Call call;
    const cudaError_t error = current().error ? current().error : last_error;
    last_error = cudaSuccess;
    return error;
}
cudaError_t cudaGetDevice(int* device) {
    *device = current_device;
    return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) {
    if (device < 0 || device >= emu::configuration().devices) return failed(cudaErrorInvalidDevice);
    current_device = device;
    return cudaSuccess;
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
    *stream = emu::new_stream(current_device);
    return cudaSuccess;
}
cudaError_t cudaGetDeviceCount(int* count) {
    *count = emu::configuration().devices;
    return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* is, int device) {
    if (device < 0 || device >= emu::configuration().devices) return failed(cudaErrorInvalidDevice);
    *is = emu::chip();
    return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int device) {
    if (device < 0 || device >= emu::configuration().devices) return failed(cudaErrorInvalidDevice);
    *value = int(emu::chip().sharedMemPerBlockOptin);
    return cudaSuccess;
}
cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute, int value) {
    Call call;
    if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return failed(current().error);
    if (value < 0 || size_t(value) > emu::chip().sharedMemPerBlockOptin) return failed(cudaErrorInvalidValue);
    most_shared_memory[{kernel, current_device}] = value;
    call.let_others_go();
    return failed(current().error);
}
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void*) {
    *attributes = {0};  // static arrays are known when a kernel comes to them
    return cudaSuccess;
}
cudaError_t cudaFuncGetName(const char** name, const void* kernel) {
    static thread_local std::string text;
    text = emu::kernel_name(kernel);
    *name = text.c_str();
    return cudaSuccess;
}
