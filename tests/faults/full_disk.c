/* A disk that is full from one operation on: preloaded into the trainer, it lets the N-th operation that makes or grows
 * something below a folder fail with "no space left", and every later one. Removing stays possible.
 *   FULL_DISK_BELOW  the folder
 *   FULL_DISK_AT     N, from 1; 0 only counts
 *   FULL_DISK_COUNT  a file that gets the number of operations when the program ends (written outside of the folder)
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static atomic_long operations;

#define REAL(name, ...) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))(__VA_ARGS__)

static int below(const char *path) {
    const char *folder = getenv("FULL_DISK_BELOW");
    char absolute[4096];
    if (!folder || !path) return 0;
    if (path[0] != '/') {
        char here[2048];
        if (!getcwd(here, sizeof here)) return 0;
        snprintf(absolute, sizeof absolute, "%s/%s", here, path);
        path = absolute;
    }
    return strncmp(path, folder, strlen(folder)) == 0;
}

static int below_fd(int fd) {
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return below(path);
}

/* Counts an operation; 1 when the disk is full by now. */
static int full(int counts) {
    if (!counts) return 0;
    const char *at = getenv("FULL_DISK_AT");
    long limit = at ? atol(at) : 0;
    long now = atomic_fetch_add(&operations, 1) + 1;
    if (limit == 0 || now < limit) return 0;
    errno = ENOSPC;
    return 1;
}

int open64(const char *path, int flags, ...) {
    mode_t mode = 0;
    if (flags & O_CREAT) {
        va_list more;
        va_start(more, flags);
        mode = va_arg(more, mode_t);
        va_end(more);
    }
    /* Opening what is there takes no room. */
    if (full((flags & O_CREAT) && access(path, F_OK) != 0 && below(path))) return -1;
    return REAL(open64, path, flags, mode);
}

ssize_t write(int fd, const void *bytes, size_t length) {
    if (full(below_fd(fd))) return -1;
    return REAL(write, fd, bytes, length);
}

/* The program is watched, not the disk: a sync that is let through has nothing to wait for. */
int fsync(int fd) { return full(below_fd(fd)) ? -1 : 0; }

int fdatasync(int fd) { return full(below_fd(fd)) ? -1 : 0; }

int rename(const char *from, const char *to) { return full(below(to)) ? -1 : REAL(rename, from, to); }

int mkdir(const char *path, mode_t mode) {
    return full(access(path, F_OK) != 0 && below(path)) ? -1 : REAL(mkdir, path, mode);
}

int symlink(const char *target, const char *path) { return full(below(path)) ? -1 : REAL(symlink, target, path); }

__attribute__((destructor)) static void tell(void) {
    const char *to = getenv("FULL_DISK_COUNT");
    if (!to) return;
    FILE *file = fopen(to, "w");
    if (!file) return;
    fprintf(file, "%ld\n", atomic_load(&operations));
    fclose(file);
}
