// Preloaded into a process: writes down, in order, every call that changes files below RECORD_ROOT to RECORD_LOG.
//
// A record: "op\0path\0other\0offset\0size\0", then `size` bytes of data. Paths are absolute. An operation and its
// record are one step, so the order in the log is that of the disk, whatever thread or process acted.

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

static pthread_mutex_t one = PTHREAD_MUTEX_INITIALIZER;
static int log_fd = -1;
static const char *root;
static size_t root_length;

#define REAL(name, type, ...) ((type (*)(__VA_ARGS__))real(#name))

static void *real(const char *name) { return dlsym(RTLD_NEXT, name); }

__attribute__((constructor)) static void begin(void) {
    root = getenv("RECORD_ROOT");
    const char *log = getenv("RECORD_LOG");
    if (root == NULL || log == NULL)
        return;
    root_length = strlen(root);
    log_fd = REAL(open, int, const char *, int, ...)(log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
}

static int watched(const char *path) {
    return log_fd >= 0 && strncmp(path, root, root_length) == 0 && (path[root_length] == '/' || path[root_length] == 0);
}

static void note(const char *op, const char *path, const char *other, long long offset, const void *data, size_t size) {
    static char head[2 * PATH_MAX + 64];
    int saved = errno;
    int n = snprintf(head, sizeof head, "%s%c%s%c%s%c%lld%c%zu%c", op, 0, path, 0, other, 0, offset, 0, size, 0);
    struct iovec parts[2] = {{head, (size_t)n}, {(void *)data, size}};
    if (REAL(writev, ssize_t, int, const struct iovec *, int)(log_fd, parts, 2) != (ssize_t)(n + size))
        abort();
    errno = saved;
}

// The absolute path of a name as a call gives it: relative to a folder's descriptor or to where the process is.
static const char *absolute(int folder, const char *path, char *into) {
    if (path == NULL || log_fd < 0)
        return "";
    if (path[0] == '/')
        return path;
    if (folder == AT_FDCWD) {
        if (getcwd(into, PATH_MAX) == NULL)
            return "";
    } else {
        char link[64];
        snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
        ssize_t n = readlink(link, into, PATH_MAX - 1);
        if (n < 0)
            return "";
        into[n] = 0;
    }
    strcat(strcat(into, "/"), path);
    return into;
}

// The path of an open regular file or folder below the root; NULL for anything else.
static const char *opened(int fd, char *into) {
    int saved = errno;
    char link[64];
    if (log_fd < 0)
        return NULL;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, into, PATH_MAX - 1);
    errno = saved;
    if (n < 0)
        return NULL;
    into[n] = 0;
    return watched(into) ? into : NULL;
}

static int open_any(int folder, const char *path, int flags, mode_t mode) {
    char buffer[PATH_MAX * 2];
    const char *where = absolute(folder, path, buffer);
    int (*call)(int, const char *, int, ...) = REAL(openat, int, int, const char *, int, ...);
    if (!(flags & (O_CREAT | O_TRUNC)) || !watched(where))
        return call(folder, path, flags, mode);
    pthread_mutex_lock(&one);
    struct stat before;
    int saved = errno, there = fstatat(folder, path, &before, 0) == 0;
    errno = saved;
    int fd = call(folder, path, flags, mode);
    if (fd >= 0 && !there)
        note("create", where, "", 0, NULL, 0);
    if (fd >= 0 && there && (flags & O_TRUNC))
        note("truncate", where, "", 0, NULL, 0);
    pthread_mutex_unlock(&one);
    return fd;
}

#define OPEN(folder, path)                                                                                             \
    va_list rest;                                                                                                      \
    va_start(rest, flags);                                                                                             \
    mode_t mode = flags & (O_CREAT | __O_TMPFILE) ? va_arg(rest, mode_t) : 0;                                          \
    va_end(rest);                                                                                                      \
    return open_any(folder, path, flags, mode)

int open(const char *path, int flags, ...) { OPEN(AT_FDCWD, path); }
int open64(const char *path, int flags, ...) { OPEN(AT_FDCWD, path); }
int openat(int folder, const char *path, int flags, ...) { OPEN(folder, path); }
int openat64(int folder, const char *path, int flags, ...) { OPEN(folder, path); }

// What was written lies before the file's position, or at `offset` where one was given.
#define WRITE(call, offset, data)                                                                                      \
    char buffer[PATH_MAX];                                                                                             \
    const char *path = opened(fd, buffer);                                                                             \
    if (path == NULL)                                                                                                  \
        return call;                                                                                                   \
    pthread_mutex_lock(&one);                                                                                          \
    ssize_t n = call;                                                                                                  \
    int saved = errno;                                                                                                 \
    if (n > 0)                                                                                                         \
        note("write", path, "", (offset) < 0 ? lseek(fd, 0, SEEK_CUR) - n : (offset), data, (size_t)n);                \
    errno = saved;                                                                                                     \
    pthread_mutex_unlock(&one);                                                                                        \
    return n

ssize_t write(int fd, const void *data, size_t size) {
    WRITE((REAL(write, ssize_t, int, const void *, size_t)(fd, data, size)), (off_t)-1, data);
}
ssize_t pwrite(int fd, const void *data, size_t size, off_t offset) {
    WRITE((REAL(pwrite, ssize_t, int, const void *, size_t, off_t)(fd, data, size, offset)), offset, data);
}
ssize_t pwrite64(int fd, const void *data, size_t size, off64_t offset) {
    WRITE((REAL(pwrite64, ssize_t, int, const void *, size_t, off64_t)(fd, data, size, offset)), offset, data);
}

// These move bytes that the process never sees: it is told that it cannot, and writes them itself.
ssize_t sendfile(int out, int in, off_t *offset, size_t size) {
    char buffer[PATH_MAX];
    if (opened(out, buffer))
        return errno = EINVAL, -1;
    return REAL(sendfile, ssize_t, int, int, off_t *, size_t)(out, in, offset, size);
}
ssize_t sendfile64(int out, int in, off64_t *offset, size_t size) { return sendfile(out, in, offset, size); }
ssize_t copy_file_range(int in, off64_t *from, int out, off64_t *to, size_t size, unsigned flags) {
    char buffer[PATH_MAX];
    if (opened(out, buffer))
        return errno = EXDEV, -1;
    return REAL(copy_file_range, ssize_t, int, off64_t *, int, off64_t *, size_t, unsigned)(in, from, out, to, size,
                                                                                            flags);
}

#define CHANGE(call, op, path, other, size)                                                                            \
    if (!watched(path))                                                                                                \
        return call;                                                                                                   \
    pthread_mutex_lock(&one);                                                                                          \
    int done = call;                                                                                                   \
    if (done == 0)                                                                                                     \
        note(op, path, other, (long long)(size), NULL, 0);                                                             \
    pthread_mutex_unlock(&one);                                                                                        \
    return done
#define ON_FILE(op, call, size)                                                                                        \
    char buffer[PATH_MAX];                                                                                             \
    const char *where = opened(fd, buffer);                                                                            \
    if (where == NULL)                                                                                                 \
        return call;                                                                                                   \
    CHANGE(call, op, where, "", size)

int fsync(int fd) { ON_FILE("sync", REAL(fsync, int, int)(fd), 0); }
int fdatasync(int fd) { ON_FILE("sync", REAL(fdatasync, int, int)(fd), 0); }
int ftruncate(int fd, off_t size) { ON_FILE("truncate", (REAL(ftruncate, int, int, off_t)(fd, size)), size); }
int ftruncate64(int fd, off64_t size) { ON_FILE("truncate", (REAL(ftruncate64, int, int, off64_t)(fd, size)), size); }

int truncate(const char *path, off_t size) {
    char buffer[PATH_MAX * 2];
    const char *where = absolute(AT_FDCWD, path, buffer);
    CHANGE((REAL(truncate, int, const char *, off_t)(path, size)), "truncate", where, "", size);
}
int truncate64(const char *path, off64_t size) { return truncate(path, size); }

int renameat(int from_folder, const char *from, int to_folder, const char *to) {
    char one_buffer[PATH_MAX * 2], other_buffer[PATH_MAX * 2];
    const char *where = absolute(from_folder, from, one_buffer), *target = absolute(to_folder, to, other_buffer);
    CHANGE((REAL(renameat, int, int, const char *, int, const char *)(from_folder, from, to_folder, to)), "rename",
           where, target, 0);
}
int rename(const char *from, const char *to) { return renameat(AT_FDCWD, from, AT_FDCWD, to); }

int linkat(int from_folder, const char *from, int to_folder, const char *to, int flags) {
    char one_buffer[PATH_MAX * 2], other_buffer[PATH_MAX * 2];
    const char *where = absolute(from_folder, from, one_buffer), *target = absolute(to_folder, to, other_buffer);
    CHANGE((REAL(linkat, int, int, const char *, int, const char *, int)(from_folder, from, to_folder, to, flags)),
           "link", where, target, 0);
}
int link(const char *from, const char *to) { return linkat(AT_FDCWD, from, AT_FDCWD, to, 0); }

int symlinkat(const char *text, int folder, const char *path) {
    char buffer[PATH_MAX * 2];
    const char *where = absolute(folder, path, buffer);
    CHANGE((REAL(symlinkat, int, const char *, int, const char *)(text, folder, path)), "symlink", where, text, 0);
}
int symlink(const char *text, const char *path) { return symlinkat(text, AT_FDCWD, path); }

int unlinkat(int folder, const char *path, int flags) {
    char buffer[PATH_MAX * 2];
    const char *where = absolute(folder, path, buffer);
    CHANGE((REAL(unlinkat, int, int, const char *, int)(folder, path, flags)), "unlink", where, "", 0);
}
int unlink(const char *path) { return unlinkat(AT_FDCWD, path, 0); }
int rmdir(const char *path) { return unlinkat(AT_FDCWD, path, AT_REMOVEDIR); }

int mkdirat(int folder, const char *path, mode_t mode) {
    char buffer[PATH_MAX * 2];
    const char *where = absolute(folder, path, buffer);
    CHANGE((REAL(mkdirat, int, int, const char *, mode_t)(folder, path, mode)), "mkdir", where, "", 0);
}
int mkdir(const char *path, mode_t mode) { return mkdirat(AT_FDCWD, path, mode); }
