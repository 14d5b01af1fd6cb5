/* Called by .ci/soak, as LD_PRELOAD: writes the bytes that glibc has handed out and not got back into the file that LIVE
 * names, and the most of them so far, twenty times a second. What glibc keeps for later, free in its arenas, does not
 * count; each thread's cache of some free blocks does. */
#include <fcntl.h>
#include <malloc.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

static volatile int64_t *live; /* at this moment, at most so far */

static void *tell(void *unused) {
    for (;; usleep(50000)) {
        struct mallinfo2 all = mallinfo2();
        live[0] = all.uordblks + all.hblkhd;
        if (live[1] < live[0])
            live[1] = live[0];
    }
    return unused;
}

__attribute__((constructor)) static void start(void) {
    int file = open(getenv("LIVE"), O_RDWR);
    void *memory = mmap(NULL, 2 * sizeof(int64_t), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    pthread_t thread;
    if (file < 0 || memory == MAP_FAILED)
        abort();
    live = memory;
    close(file);
    /* Not for the servers that the soak starts. */
    unsetenv("LD_PRELOAD");
    if (pthread_create(&thread, NULL, tell, NULL))
        abort();
}
