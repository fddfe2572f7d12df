/* Preloaded into a process: counts its system calls on what lies under one folder, and makes the chosen one fail, or
   ends the process before it. Reads and changes are counted together or apart. */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

enum { READS = 1, CHANGES = 2, MOST_FILES = 4096 };

static struct {
    long count;
    char last[PATH_MAX + 16];
} *shared; /* with the process that forked this one */
static char folder[PATH_MAX];
static long chosen;        /* 1 is the first; 0 none */
static int failure, kinds; /* an errno; 0 ends the process */
static char watched[MOST_FILES];

__attribute__((constructor)) static void prepare(void) {
    shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
}

void fault_arm(const char *under, int which, long at, int error) {
    snprintf(folder, sizeof folder, "%s", under);
    kinds = which, chosen = at, failure = error;
    shared->count = 0, shared->last[0] = 0;
}

long fault_count(void) { return shared->count; }

const char *fault_last(void) { return shared->last; }

static int is_watched(int file) { return file >= 0 && file < MOST_FILES && watched[file]; }

static int watch(int file, int yes) {
    if (file >= 0 && file < MOST_FILES)
        watched[file] = (char)yes;
    return file;
}

static int is_under(int at, const char *path) {
    size_t length = strlen(folder);
    if (!length || !path)
        return 0;
    if (path[0] != '/')
        return is_watched(at);
    return !strncmp(path, folder, length) && (!path[length] || path[length] == '/');
}

/* Whether this call, which concerns the folder, is to fail. */
static int strikes(int kind, const char *call, const char *path) {
    if (!(kinds & kind))
        return 0;
    long now = __atomic_add_fetch(&shared->count, 1, __ATOMIC_SEQ_CST);
    if (!chosen || now != chosen)
        return 0;
    snprintf(shared->last, sizeof shared->last, "%s %s", call, path ? path : "");
    if (!failure)
        kill(getpid(), SIGKILL);
    errno = failure;
    return 1;
}

#define REAL(name) ((typeof(&name))dlsym(RTLD_NEXT, #name))
#define ON_PATH(kind, result, name, at, path, parameters, arguments, failed)                                           \
    result name parameters {                                                                                           \
        if (is_under(at, path) && strikes(kind, #name, path))                                                          \
            return failed;                                                                                             \
        return REAL(name) arguments;                                                                                   \
    }
#define ON_FILE(kind, result, name, file, parameters, arguments, failed)                                               \
    result name parameters {                                                                                           \
        if (is_watched(file) && strikes(kind, #name, NULL))                                                            \
            return failed;                                                                                             \
        return REAL(name) arguments;                                                                                   \
    }
#define OPEN(name, at, parameters, arguments)                                                                          \
    int name parameters {                                                                                              \
        va_list more;                                                                                                  \
        va_start(more, flags);                                                                                         \
        int mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(more, int) : 0;                                              \
        va_end(more);                                                                                                  \
        int ours = is_under(at, path), kind = flags & (O_CREAT | O_WRONLY | O_RDWR) ? CHANGES : READS;                 \
        if (ours && strikes(kind, #name, path))                                                                        \
            return -1;                                                                                                 \
        return watch(REAL(name) arguments, ours);                                                                      \
    }

OPEN(open, AT_FDCWD, (const char *path, int flags, ...), (path, flags, mode))
OPEN(open64, AT_FDCWD, (const char *path, int flags, ...), (path, flags, mode))
OPEN(openat, at, (int at, const char *path, int flags, ...), (at, path, flags, mode))
OPEN(openat64, at, (int at, const char *path, int flags, ...), (at, path, flags, mode))

int close(int file) { return watch(file, 0), REAL(close)(file); }

int fcntl64(int file, int command, ...) {
    va_list more;
    va_start(more, command);
    long value = va_arg(more, long);
    va_end(more);
    int result = REAL(fcntl64)(file, command, value);
    if (command == F_DUPFD || command == F_DUPFD_CLOEXEC)
        watch(result, is_watched(file));
    return result;
}

DIR *opendir(const char *path) {
    int ours = is_under(AT_FDCWD, path);
    if (ours && strikes(READS, "opendir", path))
        return NULL;
    DIR *found = REAL(opendir)(path);
    if (found)
        watch(dirfd(found), ours);
    return found;
}

ON_FILE(READS, DIR *, fdopendir, file, (int file), (file), NULL)
ON_FILE(READS, struct dirent64 *, readdir64, dirfd(found), (DIR * found), (found), NULL)
ON_FILE(READS, ssize_t, read, file, (int file, void *to, size_t size), (file, to, size), -1)
ON_FILE(READS, ssize_t, readv, file, (int file, const struct iovec *to, int count), (file, to, count), -1)
ON_FILE(READS, ssize_t, pread64, file, (int file, void *to, size_t size, off64_t at), (file, to, size, at), -1)
ON_FILE(READS, ssize_t, preadv64v2, file, (int file, const struct iovec *to, int count, off64_t at, int flags),
        (file, to, count, at, flags), -1)
ON_FILE(READS, ssize_t, preadv64, file, (int file, const struct iovec *to, int count, off64_t at),
        (file, to, count, at), -1)
ON_FILE(READS, void *, mmap64, file, (void *start, size_t size, int protection, int flags, int file, off64_t at),
        (start, size, protection, flags, file, at), MAP_FAILED)
ON_FILE(READS, void *, mmap, file, (void *start, size_t size, int protection, int flags, int file, off_t at),
        (start, size, protection, flags, file, at), MAP_FAILED)
ON_FILE(READS, int, fstat64, file, (int file, struct stat64 *to), (file, to), -1)
ON_PATH(READS, int, stat64, AT_FDCWD, path, (const char *path, struct stat64 *to), (path, to), -1)
ON_PATH(READS, int, lstat64, AT_FDCWD, path, (const char *path, struct stat64 *to), (path, to), -1)
ON_PATH(READS, int, fstatat64, at, path, (int at, const char *path, struct stat64 *to, int flags),
        (at, path, to, flags), -1)
ON_PATH(READS, int, statx, at, path, (int at, const char *path, int flags, unsigned mask, struct statx *to),
        (at, path, flags, mask, to), -1)
ON_PATH(READS, ssize_t, readlink, AT_FDCWD, path, (const char *path, char *to, size_t size), (path, to, size), -1)
ON_PATH(READS, ssize_t, readlinkat, at, path, (int at, const char *path, char *to, size_t size), (at, path, to, size),
        -1)

ON_FILE(CHANGES, ssize_t, write, file, (int file, const void *from, size_t size), (file, from, size), -1)
ON_FILE(CHANGES, int, fsync, file, (int file), (file), -1)
ON_FILE(CHANGES, int, ftruncate64, file, (int file, off64_t size), (file, size), -1)
ON_PATH(CHANGES, int, unlink, AT_FDCWD, path, (const char *path), (path), -1)
ON_PATH(CHANGES, int, unlinkat, at, path, (int at, const char *path, int flags), (at, path, flags), -1)
ON_PATH(CHANGES, int, rmdir, AT_FDCWD, path, (const char *path), (path), -1)
ON_PATH(CHANGES, int, mkdir, AT_FDCWD, path, (const char *path, mode_t mode), (path, mode), -1)
ON_PATH(CHANGES, int, rename, AT_FDCWD, path, (const char *path, const char *to), (path, to), -1)
ON_PATH(CHANGES, int, renameat, at, path, (int at, const char *path, int other, const char *to), (at, path, other, to),
        -1)
