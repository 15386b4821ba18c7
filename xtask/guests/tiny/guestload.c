// guestload: what tests ask a guest to do, in one static program.
//
//   guestload dirty MIB RATE            keep dirtying MIB of memory at RATE MiB per second
//   guestload scatter MIB               fill MIB of memory, then free every other 64 KiB of it and keep the rest
//   guestload write DEVICE BLOCKS [COUNTER [FIRST]]    write a pattern, then flush
//   guestload verify DEVICE BLOCKS [COUNTER [FIRST]]   read it back, name the first bad block
//   guestload tick PORT MS              write "TICK number monotonic-ms wall-ms" every MS
//   guestload answer PORT               TCP: send "hostname uptime-ms" to whoever connects
//   guestload findlabel LABEL           print the block device whose file system has that label
//   guestload session TTY               a root shell on a terminal; keeps what was typed before
//   guestload watch HANDLER             bring up NICs and CPUs; HANDLER link IFACE, HANDLER power
//
// Pattern block (4096 bytes, little endian): magic u64, block number u64, counter u64, then the
// 64-bit words of a xorshift stream seeded by the two, and last the FNV-1a checksum of all before.

#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/input.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define BLOCK 4096
#define WORDS (BLOCK / 8)
#define MAGIC 0x4d55535445523031ULL
#define IFACES_MAX 64
#define LOWER_UP 0x10000 // IFF_LOWER_UP, which only the kernel's own <linux/if.h> names
#define EVDEV_MAX 16

static void die(const char *what) {
    fprintf(stderr, "guestload: %s: %s\n", what, strerror(errno));
    exit(1);
}

static uint64_t now_ms(clockid_t clock) {
    struct timespec t;
    clock_gettime(clock, &t);
    return (uint64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

static void sleep_until_ms(uint64_t at) {
    struct timespec t = {.tv_sec = at / 1000, .tv_nsec = (at % 1000) * 1000000};
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL) == EINTR) {
    }
}

_Noreturn static void cmd_dirty(uint64_t mib, uint64_t rate) {
    size_t size = mib << 20, page = 4096, at = 0;
    uint64_t round = 0, done = 0, start = now_ms(CLOCK_MONOTONIC), said = start;
    char *area = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (area == MAP_FAILED) die("cannot get that much memory");
    for (uint64_t step = 1;; step++) {
        // Ten milliseconds' share at a time; pages get a new value in each round.
        uint64_t want = (now_ms(CLOCK_MONOTONIC) - start) * rate * 256 / 1000;
        for (; done < want; done++, at += page) {
            if (at >= size) at = 0, round++;
            *(uint64_t *)(area + at) = round * 0x9e3779b97f4a7c15ULL + done;
        }
        uint64_t now = now_ms(CLOCK_MONOTONIC);
        if (now - said >= 1000) {
            said = now;
            printf("DIRTY %llu MiB\n", (unsigned long long)(done / 256));
            fflush(stdout);
        }
        sleep_until_ms(start + step * 10);
    }
}

// What is freed lies in pieces far smaller than those that a kernel reports to its host by itself.
_Noreturn static void cmd_scatter(uint64_t mib) {
    size_t size = mib << 20, piece = 64 << 10;
    char *area = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (area == MAP_FAILED) die("cannot get that much memory");
    madvise(area, size, MADV_NOHUGEPAGE);
    for (size_t at = 0; at < size; at += 8) *(uint64_t *)(area + at) = (at + 1) * 0x9e3779b97f4a7c15ULL;
    for (size_t at = 0; at < size; at += 2 * piece) {
        if (madvise(area + at, piece, MADV_DONTNEED)) die("cannot free it");
    }
    printf("SCATTERED %llu\n", (unsigned long long)mib);
    fflush(stdout);
    for (;;) {
        // What is kept is what it was, for ever.
        for (size_t at = piece; at < size; at += 2 * piece) {
            if (*(uint64_t *)(area + at) != (at + 1) * 0x9e3779b97f4a7c15ULL) die("memory has changed");
        }
        sleep_until_ms(now_ms(CLOCK_MONOTONIC) + 500);
    }
}

static void fill(uint64_t *words, uint64_t block, uint64_t counter) {
    uint64_t x = (block + 1) * 0x9e3779b97f4a7c15ULL ^ (counter + 1) * 0xbf58476d1ce4e5b9ULL;
    uint64_t sum = 0xcbf29ce484222325ULL;
    words[0] = MAGIC, words[1] = block, words[2] = counter;
    for (int i = 3; i < WORDS - 1; i++) {
        x ^= x << 13, x ^= x >> 7, x ^= x << 17;
        words[i] = x;
    }
    for (int i = 0; i < WORDS - 1; i++) sum = (sum ^ words[i]) * 0x100000001b3ULL;
    words[WORDS - 1] = sum;
}

static int open_direct(const char *path, int flags) {
    int fd = open(path, flags | O_DIRECT);
    if (fd < 0 && errno == EINVAL) fd = open(path, flags);
    if (fd < 0) die(path);
    return fd;
}

static int cmd_write(const char *dev, uint64_t blocks, uint64_t counter, uint64_t first) {
    // A disk that was just plugged in is waited for. A file made in its place would take the pattern, too,
    // and keep it in memory only.
    int device = !strncmp(dev, "/dev/", 5);
    for (int i = 0; device && access(dev, F_OK) && i < 600; i++) {
        sleep_until_ms(now_ms(CLOCK_MONOTONIC) + 100);
    }
    int fd = open_direct(dev, device ? O_WRONLY : O_WRONLY | O_CREAT);
    uint64_t *words = aligned_alloc(BLOCK, BLOCK);
    for (uint64_t b = first; b < first + blocks; b++) {
        fill(words, b, counter);
        if (pwrite(fd, words, BLOCK, b * BLOCK) != BLOCK) die("write");
    }
    if (fsync(fd)) die("fsync");
    printf("WRITTEN %llu\n", (unsigned long long)blocks);
    return 0;
}

static int cmd_verify(const char *dev, uint64_t blocks, uint64_t counter, uint64_t first) {
    int fd = open_direct(dev, O_RDONLY);
    uint64_t *have = aligned_alloc(BLOCK, BLOCK), want[WORDS];
    for (uint64_t b = first; b < first + blocks; b++) {
        if (pread(fd, have, BLOCK, b * BLOCK) != BLOCK) die("read");
        fill(want, b, counter);
        if (memcmp(have, want, BLOCK)) {
            printf("BAD block %llu: magic %llx block %llu counter %llu\n", (unsigned long long)b,
                   (unsigned long long)have[0], (unsigned long long)have[1],
                   (unsigned long long)have[2]);
            return 1;
        }
    }
    printf("VERIFIED %llu\n", (unsigned long long)blocks);
    return 0;
}

_Noreturn static void cmd_tick(const char *port, uint64_t every_ms) {
    int fd = open(port, O_WRONLY | O_NOCTTY);
    uint64_t start = now_ms(CLOCK_MONOTONIC);
    if (fd < 0) die(port);
    for (uint64_t n = 0;; n++) {
        dprintf(fd, "TICK %llu %llu %llu\n", (unsigned long long)n,
                (unsigned long long)now_ms(CLOCK_MONOTONIC),
                (unsigned long long)now_ms(CLOCK_REALTIME));
        sleep_until_ms(start + (n + 1) * every_ms);
    }
}

_Noreturn static void cmd_answer(uint16_t port) {
    int on = 1, listener = socket(AF_INET6, SOCK_STREAM, 0);
    struct sockaddr_in6 any = {.sin6_family = AF_INET6, .sin6_port = htons(port)};
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(listener, (struct sockaddr *)&any, sizeof any) || listen(listener, 16)) die("bind");
    signal(SIGPIPE, SIG_IGN);
    for (;;) {
        char name[65] = "";
        int peer = accept(listener, NULL, NULL);
        if (peer < 0) continue;
        gethostname(name, sizeof name - 1);
        dprintf(peer, "%s %llu\n", name, (unsigned long long)now_ms(CLOCK_BOOTTIME));
        close(peer);
    }
}

static int has_label(const char *path, const char *label) {
    // ISO 9660: volume id at 32 KiB + 40. FAT12/16: at 43. FAT32: at 71. Padded with spaces.
    static const int at[] = {32768 + 40, 43, 71};
    int fd = open(path, O_RDONLY), found = 0;
    size_t n = strlen(label);
    for (unsigned i = 0; fd >= 0 && i < 3; i++) {
        char text[12] = "";
        if (pread(fd, text, 11, at[i]) != 11) continue;
        if (n <= 11 && !strncasecmp(text, label, n) && (text[n] == ' ' || !text[n])) found = 1;
    }
    if (fd >= 0) close(fd);
    return found;
}

static int cmd_findlabel(const char *label) {
    DIR *dir = opendir("/sys/class/block");
    for (struct dirent *e; dir && (e = readdir(dir));) {
        char path[300];
        snprintf(path, sizeof path, "/dev/%s", e->d_name);
        if (e->d_name[0] != '.' && has_label(path, label)) return puts(path), 0;
    }
    return 1;
}

static int cmd_session(const char *tty) {
    setsid();
    int fd = open(tty, O_RDWR);
    if (fd < 0) die(tty);
    ioctl(fd, TIOCSCTTY, 1);
    for (int i = 0; i < 3; i++) dup2(fd, i);
    if (fd > 2) close(fd);
    execl("/bin/sh", "-sh", NULL);
    die("/bin/sh");
    return 1;
}

// What watch knows.
static const char *handler;
static int link_up[IFACES_MAX], evdevs;
static struct pollfd polls[2 + EVDEV_MAX];

static void handle(const char *kind, const char *arg) {
    if (fork() == 0) {
        execl("/bin/sh", "sh", handler, kind, arg, NULL);
        _exit(127);
    }
}

static void on_link(struct nlmsghdr *message) {
    struct ifinfomsg *info = NLMSG_DATA(message);
    int i = info->ifi_index;
    struct ifreq request = {0};
    if (i < 0 || i >= IFACES_MAX || (info->ifi_flags & IFF_LOOPBACK)) return;
    if (message->nlmsg_type == RTM_DELLINK) {
        link_up[i] = 0;
        return;
    }
    if (!if_indextoname(i, request.ifr_name)) return;
    if (!(info->ifi_flags & IFF_UP)) {
        int s = socket(AF_INET, SOCK_DGRAM, 0);
        request.ifr_flags = info->ifi_flags | IFF_UP;
        ioctl(s, SIOCSIFFLAGS, &request);
        close(s);
        return;
    }
    int up = (info->ifi_flags & LOWER_UP) != 0;
    if (up && !link_up[i]) handle("link", request.ifr_name);
    link_up[i] = up;
}

static int open_route(void) {
    int fd = socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE);
    struct sockaddr_nl group = {.nl_family = AF_NETLINK, .nl_groups = RTMGRP_LINK};
    struct {
        struct nlmsghdr head;
        struct rtgenmsg body;
    } dump = {{.nlmsg_len = sizeof dump,
               .nlmsg_type = RTM_GETLINK,
               .nlmsg_flags = NLM_F_REQUEST | NLM_F_DUMP},
              {.rtgen_family = AF_UNSPEC}};
    if (bind(fd, (struct sockaddr *)&group, sizeof group)) die("rtnetlink");
    send(fd, &dump, dump.head.nlmsg_len, 0);
    return fd;
}

static int open_uevent(void) {
    int fd = socket(AF_NETLINK, SOCK_DGRAM, NETLINK_KOBJECT_UEVENT);
    struct sockaddr_nl group = {.nl_family = AF_NETLINK, .nl_groups = 1};
    if (bind(fd, (struct sockaddr *)&group, sizeof group)) die("uevent");
    return fd;
}

static void open_evdev(const char *name) {
    char path[300];
    snprintf(path, sizeof path, "/dev/input/%s", name);
    if (strncmp(name, "event", 5) || evdevs == EVDEV_MAX) return;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd >= 0) polls[2 + evdevs++] = (struct pollfd){.fd = fd, .events = POLLIN};
}

static void online_cpu(const char *path) {
    char file[300];
    snprintf(file, sizeof file, "%s/online", path);
    int fd = open(file, O_WRONLY | O_CLOEXEC);
    if (fd >= 0) {
        if (write(fd, "1", 1) != 1) fprintf(stderr, "guestload: %s stays off\n", file);
        close(fd);
    }
}

static void on_uevent(char *text, size_t length) {
    char path[280];
    const char *device = strchr(text, '@');
    if (strncmp(text, "add@", 4) || !device) return;
    snprintf(path, sizeof path, "/sys%s", device + 1);
    for (char *field = text; field < text + length; field += strlen(field) + 1) {
        if (!strcmp(field, "SUBSYSTEM=cpu")) online_cpu(path);
        if (!strncmp(field, "DEVNAME=input/", 14)) open_evdev(field + 14);
    }
}

static void on_input(struct pollfd *from) {
    struct input_event event;
    if (read(from->fd, &event, sizeof event) != sizeof event) {
        close(from->fd);
        from->fd = -1;
    } else if (event.type == EV_KEY && event.code == KEY_POWER && event.value == 1) {
        handle("power", "");
    }
}

_Noreturn static void cmd_watch(const char *script) {
    static char buffer[65536];
    handler = script;
    signal(SIGCHLD, SIG_IGN);
    polls[0] = (struct pollfd){.fd = open_route(), .events = POLLIN};
    polls[1] = (struct pollfd){.fd = open_uevent(), .events = POLLIN};
    DIR *dir = opendir("/dev/input");
    for (struct dirent *e; dir && (e = readdir(dir));) open_evdev(e->d_name);
    for (;;) {
        if (poll(polls, 2 + evdevs, -1) < 0) continue;
        if (polls[0].revents) {
            int left = recv(polls[0].fd, buffer, sizeof buffer, 0);
            for (struct nlmsghdr *m = (void *)buffer; NLMSG_OK(m, left); m = NLMSG_NEXT(m, left))
                if (m->nlmsg_type == RTM_NEWLINK || m->nlmsg_type == RTM_DELLINK) on_link(m);
        }
        if (polls[1].revents) {
            ssize_t got = recv(polls[1].fd, buffer, sizeof buffer - 1, 0);
            if (got > 0) buffer[got] = 0, on_uevent(buffer, got);
        }
        for (int i = 2; i < 2 + evdevs; i++)
            if (polls[i].revents) on_input(&polls[i]);
    }
}

static uint64_t number(int argc, char **argv, int at, const char *fallback) {
    return strtoull(at < argc ? argv[at] : fallback, NULL, 0);
}

int main(int argc, char **argv) {
    const char *verb = argc > 1 ? argv[1] : "";
    const char *one = argc > 2 ? argv[2] : "";
    if (!strcmp(verb, "dirty") && argc == 4)
        cmd_dirty(number(argc, argv, 2, ""), number(argc, argv, 3, ""));
    if (!strcmp(verb, "scatter") && argc == 3) cmd_scatter(number(argc, argv, 2, ""));
    if (!strcmp(verb, "write") && argc >= 4)
        return cmd_write(one, number(argc, argv, 3, ""), number(argc, argv, 4, "0"),
                         number(argc, argv, 5, "0"));
    if (!strcmp(verb, "verify") && argc >= 4)
        return cmd_verify(one, number(argc, argv, 3, ""), number(argc, argv, 4, "0"),
                          number(argc, argv, 5, "0"));
    if (!strcmp(verb, "tick") && argc == 4) cmd_tick(one, number(argc, argv, 3, ""));
    if (!strcmp(verb, "answer") && argc == 3) cmd_answer(number(argc, argv, 2, ""));
    if (!strcmp(verb, "findlabel") && argc == 3) return cmd_findlabel(one);
    if (!strcmp(verb, "session") && argc == 3) return cmd_session(one);
    if (!strcmp(verb, "watch") && argc == 3) cmd_watch(one);
    fprintf(stderr, "usage: guestload dirty MIB RATE | write|verify DEVICE BLOCKS [COUNTER [FIRST]]"
                    " | tick PORT MS | answer PORT | findlabel LABEL | session TTY"
                    " | watch HANDLER\n");
    return 2;
}
