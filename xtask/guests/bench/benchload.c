// benchload: the load of a guest that is migrated, and the ticks by which a host sees its pauses.
//
//   host to guest   UDP to port 7780: "RUN TICK_US RATE SET" or "REST"
//   guest to host   "T NUMBER MONOTONIC_US READY DIRTIED ROUNDS STILL WRONG" to whoever asked last
//
// While it runs, it dirties RATE MiB per second, page by page, over SET MiB. Each page holds the
// round in which it was written last, and is checked before it is written again: a page that a
// migration brought in an older state, or not at all, is counted in WRONG and said on the console.
// ROUNDS and STILL count how often the whole set, and a small area that is never written again,
// were gone through. READY is 1 once the asked set is there. DIRTIED is in pages.
//
// Ticks go by the network and not by the serial port: their way is the same for every virtual
// machine monitor, and leads to the same place before and after a migration. They are for one
// receiver and not for all: a paused machine keeps broadcasts and takes them all when it goes on.

#define _GNU_SOURCE
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <signal.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define PORT 7780
#define PAGE 4096
#define STILL_PAGES 4096
#define STILL_A_STEP 16
#define STEP_US 5000
#define REST_US 100000
// A guest that stood still or is too slow does not make up for more than that.
#define OWED_US_MAX 50000

// Shared between the ticker, which takes orders, and the dirtier. Each field has one writer.
static volatile struct {
    uint64_t order, rate, set_mib, awake; // by the ticker; `order` last
    uint64_t done_order, dirtied, rounds, still, wrong; // by the dirtier
} *shared;

static void die(const char *what) {
    fprintf(stderr, "benchload: %s: %s\n", what, strerror(errno));
    exit(1);
}

static uint64_t now_us(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000 + t.tv_nsec / 1000;
}

static void sleep_until_us(uint64_t at) {
    struct timespec t = {.tv_sec = at / 1000000, .tv_nsec = (at % 1000000) * 1000};
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL) == EINTR) {
    }
}

static void *area(uint64_t bytes) {
    void *at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (at == MAP_FAILED) die("not enough memory");
    return at;
}

// What a page holds that was written in a round; never zero, which would be no page to send.
static uint64_t mark(uint64_t page, uint64_t round) {
    return (((page + 1) * 0x9e3779b97f4a7c15ULL) ^ ((round + 1) * 0xbf58476d1ce4e5b9ULL)) | 1;
}

// Words that do not compress; the marks are put over two of them.
static void fill(uint64_t *words, uint64_t pages) {
    uint64_t x = 88172645463325252ULL;
    for (uint64_t i = 0; i < pages * (PAGE / 8); i++) {
        x ^= x << 13, x ^= x >> 7, x ^= x << 17;
        words[i] = x;
    }
}

static void set_marks(uint64_t *words, uint64_t page, uint64_t round) {
    words[page * (PAGE / 8)] = mark(page, round);
    words[page * (PAGE / 8) + PAGE / 16] = ~mark(page, round);
}

static void check_marks(const uint64_t *words, uint64_t page, uint64_t round, const char *what) {
    uint64_t want = mark(page, round);
    if (words[page * (PAGE / 8)] == want && words[page * (PAGE / 8) + PAGE / 16] == ~want) return;
    if (shared->wrong++ > 0) return;
    FILE *console = fopen("/dev/ttyS0", "w");
    if (!console) return;
    fprintf(console, "MUSTER-BENCH-WRONG %s page %llu round %llu\n", what,
            (unsigned long long)page, (unsigned long long)round);
    fclose(console);
}

_Noreturn static void dirty(void) {
    uint64_t *still = area(STILL_PAGES * PAGE), *set = NULL, pages = 0, at = 0, round = 0, look = 0;
    uint64_t last = now_us();
    double owed = 0;
    fill(still, STILL_PAGES);
    for (uint64_t page = 0; page < STILL_PAGES; page++) set_marks(still, page, 0);
    for (;;) {
        uint64_t order = shared->order;
        if (order != shared->done_order) {
            uint64_t wanted = (shared->set_mib << 20) / PAGE;
            if (wanted != pages) {
                if (set) munmap(set, pages * PAGE);
                pages = wanted, at = 0, round = 0, set = NULL;
                if (pages) fill(set = area(pages * PAGE), pages);
                for (uint64_t page = 0; page < pages; page++) set_marks(set, page, 0);
            }
            last = now_us(), owed = 0;
            shared->done_order = order;
        }
        if (!shared->awake) {
            sleep_until_us(now_us() + REST_US);
            last = now_us();
            continue;
        }
        sleep_until_us(now_us() + STEP_US);
        uint64_t now = now_us(), passed = now - last;
        last = now;
        for (int i = 0; i < STILL_A_STEP; i++) {
            check_marks(still, look, 0, "still");
            if (++look == STILL_PAGES) look = 0, shared->still++;
        }
        if (!pages || !shared->rate) continue;
        owed += shared->rate * 256.0 * (passed < OWED_US_MAX ? passed : OWED_US_MAX) / 1e6;
        for (; owed >= 1; owed -= 1, shared->dirtied++) {
            check_marks(set, at, round, "dirty");
            set_marks(set, at, round + 1);
            if (++at == pages) at = 0, round++, shared->rounds++;
            if ((shared->dirtied & 1023) == 0 && now_us() - now > OWED_US_MAX) owed = 0;
        }
    }
}

// Takes an order; returns the time between two ticks, or 0 to be silent.
static uint64_t obey(const char *text, uint64_t tick_us) {
    unsigned long long every, rate, set;
    if (sscanf(text, "RUN %llu %llu %llu", &every, &rate, &set) == 3) {
        int same = tick_us && shared->rate == rate && shared->set_mib == set;
        shared->rate = rate, shared->set_mib = set, shared->awake = 1;
        if (!same) shared->order++;
        return every;
    }
    if (!strncmp(text, "REST", 4)) {
        shared->rate = 0, shared->awake = 0;
        return 0;
    }
    return tick_us;
}

_Noreturn static void tick(int s) {
    struct sched_param first = {.sched_priority = 50};
    struct sockaddr_in host = {0};
    uint64_t every = 0, number = 0, next = now_us();
    char text[160];
    if (sched_setscheduler(0, SCHED_FIFO, &first)) die("real-time priority");
    for (;;) {
        struct pollfd order = {.fd = s, .events = POLLIN};
        if (poll(&order, 1, every ? 0 : -1) > 0) {
            struct sockaddr_in from;
            socklen_t size = sizeof from;
            ssize_t got = recvfrom(s, text, sizeof text - 1, 0, (void *)&from, &size);
            if (got > 0) text[got] = 0, host = from, every = obey(text, every);
            continue;
        }
        next += every;
        // No burst after a pause: that would hide it.
        if (next < now_us()) next = now_us() + every;
        sleep_until_us(next);
        int length = snprintf(
            text, sizeof text, "T %llu %llu %d %llu %llu %llu %llu", (unsigned long long)++number,
            (unsigned long long)now_us(), shared->done_order == shared->order,
            (unsigned long long)shared->dirtied, (unsigned long long)shared->rounds,
            (unsigned long long)shared->still, (unsigned long long)shared->wrong);
        // A tick that cannot be sent is a tick that is missed; the host sees that.
        (void)!sendto(s, text, length, MSG_DONTWAIT, (void *)&host, sizeof host);
    }
}

int main(void) {
    struct sockaddr_in here = {.sin_family = AF_INET, .sin_port = htons(PORT)};
    int s = socket(AF_INET, SOCK_DGRAM, 0);
    if (s < 0 || bind(s, (void *)&here, sizeof here)) die("the port");
    shared = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (shared == MAP_FAILED) die("shared memory");
    pid_t child = fork();
    if (child < 0) die("fork");
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        dirty();
    }
    tick(s);
}
