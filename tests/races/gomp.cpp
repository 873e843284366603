// The part of GCC's OpenMP library that the kernel calls, for ThreadSanitizer: it does not see into the library itself
// and would report races that are none.
//
// Threads wait for each other only where OpenMP says so (the start and end of a parallel region, barriers, the turns of
// an ordered loop). Any other lock or atomic number would order the threads further, and hide races.

#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <mutex>
#include <thread>
#include <vector>

namespace {

class Barrier {
    std::mutex mutex;
    std::condition_variable all_here;
    unsigned here = 0, passed = 0;

public:
    void wait(unsigned threads) {
        std::unique_lock<std::mutex> lock(mutex);
        const unsigned before = passed;
        if (++here == threads) {
            here = 0;
            ++passed;
            all_here.notify_all();
        } else {
            all_here.wait(lock, [&] { return passed != before; });
        }
    }
};

struct Team {
    unsigned threads, region;
    // Used in turn. With one alone, a thread that wakes late takes the lock after another has come to the next barrier,
    // and so would be ordered after what that one did between the two.
    Barrier barriers[2];
    std::atomic<long> turn{0};  // of the iterations of its ordered loops, counted through; no lock, as who waits for a
                                // later turn would take it too, and so be ordered before who has this one
};

struct Place {  // of a thread in its team
    Team *team = nullptr;
    unsigned number = 0, barriers = 0, loops = 0;
    long next = 0, end = 0;  // of the loop it is in
    long first_turn = 0, turns = 0;  // turn of iteration 0 of that loop if it is ordered; turns up to its end
};

thread_local Place place;

// Who runs an iteration of a dynamic loop. In truth whoever comes first; here nothing is shared to find out, no thread
// can run all of a short loop before the others have started, and every loop is dealt out in another way.
unsigned owner(long iteration) {
    const unsigned loop = place.team->region * 16 + place.loops;
    const unsigned mixed = (unsigned(iteration) + loop * 40503u + 1) * 2654435761u;
    return (mixed >> 16) % place.team->threads;
}

}  // namespace

extern "C" {

void GOMP_parallel(void (*function)(void *), void *data, unsigned threads, unsigned) {
    static unsigned regions = 0;
    if (place.team || !threads) std::abort();  // regions inside regions and a number left open are not needed
    Team team{threads, regions++, {}, {}};
    const auto run = [&team, function, data](unsigned number) {
        place = Place{&team, number};
        function(data);
        place = Place{};
    };
    std::vector<std::thread> others;
    for (unsigned number = 1; number < threads; ++number) others.emplace_back(run, number);
    run(0);
    for (std::thread &other : others) other.join();
}

int omp_get_thread_num() { return int(place.number); }
int omp_get_num_threads() { return place.team ? int(place.team->threads) : 1; }

void GOMP_barrier() { place.team->barriers[place.barriers++ % 2].wait(place.team->threads); }

bool GOMP_loop_nonmonotonic_dynamic_next(long *start, long *stop) {
    while (place.next < place.end && owner(place.next) != place.number) ++place.next;
    *start = place.next++;
    *stop = place.next;
    return *start < place.end;
}

bool GOMP_loop_nonmonotonic_dynamic_start(long from, long to, long step, long chunk, long *start, long *stop) {
    if (step != 1 || chunk != 1) std::abort();  // the kernel's loops are all so
    place.next = from;
    place.end = to;
    ++place.loops;
    return GOMP_loop_nonmonotonic_dynamic_next(start, stop);
}

bool GOMP_loop_ordered_dynamic_next(long *start, long *stop) {
    return GOMP_loop_nonmonotonic_dynamic_next(start, stop);
}

bool GOMP_loop_ordered_dynamic_start(long from, long to, long step, long chunk, long *start, long *stop) {
    place.first_turn = place.turns - from;
    place.turns += to - from;
    return GOMP_loop_nonmonotonic_dynamic_start(from, to, step, chunk, start, stop);
}

// Every iteration of the kernel's ordered loop has its turn; one that passed it over would stop the rest for good.
void GOMP_ordered_start() {
    const long mine = place.first_turn + place.next - 1;
    while (place.team->turn.load(std::memory_order_acquire) != mine) std::this_thread::yield();
}

void GOMP_ordered_end() { place.team->turn.store(place.first_turn + place.next, std::memory_order_release); }

void GOMP_loop_end() { GOMP_barrier(); }
}
