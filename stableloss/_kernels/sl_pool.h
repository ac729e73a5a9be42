/* Work in blocks, shared among threads; the memory that it is done in; and Ctrl-C meanwhile.

   A call is made of blocks that do not depend on each other. The thread that makes it works on them itself, and
   helpers take blocks as they come, so that a helper that comes late, or not at all, leaves nothing undone.
   Helpers are made when first needed and never end. They touch no Python object, take no GIL and hold no lock;
   one that has nothing to do is blocked on its own, and at the end of the process it is cut off there.

   There is no queue and no list under a lock. Each helper has one word, which says what it is at:

       NONE      no such thread
       AWAKE     between two calls, on the way to its lock
       SLEEPING  blocked on its lock, which whoever offers it a call releases
       BUSY      working
       else      the address of a call that is offered to it

   A call is offered by replacing AWAKE or SLEEPING (or NONE, where the thread is then started), taken by
   replacing the address by BUSY, and withdrawn by replacing the address by AWAKE. So a call that is over knows
   of each helper whether it is in there; it waits for those that are, and for nobody else. Nothing that a
   thread waits for can be held by itself: a call that is made in the middle of another one, by a signal handler
   or a destructor, finds helpers or does without. */

#ifndef SL_POOL_H
#define SL_POOL_H

#include <Python.h>
#include <stdlib.h>
#include "sl_platform.h"
#include "sl_sizes.h"

enum {
    SL_KEPT = 16,               /* workspaces that are kept for the next call */
    SL_MAX_HELPERS = 255,       /* whatever number of threads is asked for: memory is exhausted long before */
    SL_ASK = 50000000,          /* nanoseconds between two questions for signals ... */
    SL_WAIT = 10000,            /* ... and microseconds until one who waits looks at the clock */
    SL_MAX_ASKING = 8,          /* calls in the middle of which a call that asks is made: each takes up stack */
    SL_SPIN = 10000,            /* nanoseconds that a caller looks out for the last helper before it blocks */
    SL_RETRY = 100000000        /* nanoseconds until a thread is asked for again where one was refused */
};

/* ---- workspaces ---------------------------------------------------------------------------------- */

/* What a thread needs to work on a call. Taken for the time of a call and given back, so that threads that do
   not compute have none, and a call in the middle of another one has its own. */
typedef struct {
    void *scratch;              /* SL_SCRATCH bytes, aligned to a cache line */
    PyThread_type_lock done;    /* held, but when the last helper has left a call after its caller */
} sl_workspace;

static sl_workspace *sl_kept[SL_KEPT];

static sl_workspace *sl_new_workspace(void) {
    char *memory = (char *)malloc(sizeof(sl_workspace) + 63 + SL_SCRATCH);
    sl_workspace *own = (sl_workspace *)memory;
    if (own == NULL)
        return NULL;
    own->scratch = (void *)(((uintptr_t)memory + sizeof(sl_workspace) + 63) & ~(uintptr_t)63);
    own->done = NULL;
    return own;
}

/* Where a thread looks first for a workspace. Without the GIL small calls of several threads would contend for
   one place. */
static inline unsigned sl_first_kept(void) {
#ifdef Py_GIL_DISABLED
    return (unsigned)(((uint64_t)PyThread_get_thread_ident() * 0x9e3779b97f4a7c15u) >> 60);
#else
    return 0;
#endif
}

/* NULL where there is no memory. */
static inline sl_workspace *sl_take_workspace(void) {
    unsigned first = sl_first_kept(), i;
    for (i = 0; i < SL_KEPT; i++) {
        sl_workspace **place = &sl_kept[(first + i) % SL_KEPT];
        if (SL_PEEK(place) != NULL) {
            sl_workspace *own = SL_SWAP(place, NULL);
            if (own != NULL)
                return own;
        }
    }
    return sl_new_workspace();
}

static inline void sl_give_workspace(sl_workspace *own) {
    unsigned first = sl_first_kept(), i;
    for (i = 0; i < SL_KEPT; i++) {
        sl_workspace **place = &sl_kept[(first + i) % SL_KEPT];
        if (SL_PEEK(place) == NULL && SL_REPLACE(place, NULL, own))
            return;
    }
    if (own->done != NULL)
        PyThread_free_lock(own->done);
    free(own);
}

/* A lock that is held, or NULL. */
static PyThread_type_lock sl_new_lock(void) {
    PyThread_type_lock lock = PyThread_allocate_lock();
    if (lock != NULL)
        PyThread_acquire_lock(lock, WAIT_LOCK);
    return lock;
}

/* ---- calls --------------------------------------------------------------------------------------- */

typedef void (*sl_work)(void *context, Py_ssize_t block, void *scratch);

typedef struct sl_call {
    sl_work work;
    void *context;
    Py_ssize_t blocks;
    Py_ssize_t taken;           /* blocks that somebody has */
    int stop;                   /* nothing more is to be written: an exception is set */
    int closed;                 /* helpers are to leave */
    int present;                /* threads that may still look at this */
    int asks;                   /* made by the thread that signals are for */
    unsigned questions;
    int helpers;                /* to which it was offered ... */
    unsigned char helper[SL_MAX_HELPERS];   /* ... and which they are */
    PyThread_type_lock done;
    struct sl_call *outer;      /* the call in the middle of which this one was made */
} sl_call;

/* The main thread's own: when it is to ask for signals next, its innermost call that is asking, and how many
   there are. */
static unsigned long sl_main_thread;
static int64_t sl_ask_at;
static sl_call *sl_asking;
static int sl_number_asking;

static void sl_gather(sl_call *call, int asks);

/* Runs the handlers of signals that have come. Their Python code may do anything: call a loss, fork, raise. */
static void sl_ask(sl_call *call) {
    PyGILState_STATE state;
    sl_environment environment = sl_default_environment();
    int64_t start = sl_clock();
    sl_ask_at = start + SL_ASK;
    state = PyGILState_Ensure();
    call->outer = sl_asking;
    sl_asking = call;
    sl_number_asking++;
    if (PyErr_CheckSignals() != 0)
        SL_STORE(&call->stop, 1);
    sl_number_asking--;
    sl_asking = call->outer;
    PyGILState_Release(state);
    sl_restore_environment(environment);
    /* others that compute in Python may let go of the GIL only every few milliseconds */
    sl_ask_at = sl_clock() + SL_ASK;
}

static inline void sl_ask_in_time(sl_call *call) {
    if (call->asks && !SL_PEEK(&call->stop) && sl_clock() >= sl_ask_at)
        sl_ask(call);
}

/* Whether a thread that works on a block of the call is to leave it half done; quick, as it may be asked every
   few hundred nanoseconds. */
static inline int sl_stopped(sl_call *call) {
    if (call->asks && PyThread_get_thread_ident() == sl_main_thread && ++call->questions % 16 == 0)
        sl_ask_in_time(call);
    return SL_PEEK(&call->stop);
}

/* ---- helpers ------------------------------------------------------------------------------------- */

#define SL_NONE ((uintptr_t)0)
#define SL_AWAKE ((uintptr_t)1)
#define SL_SLEEPING ((uintptr_t)2)
#define SL_BUSY ((uintptr_t)3)

typedef struct {
    uintptr_t word;
    PyThread_type_lock wake;
    char rest[64 - sizeof(uintptr_t) - sizeof(PyThread_type_lock)];     /* a cache line each */
} sl_helper;

static sl_helper sl_helpers[SL_MAX_HELPERS] __attribute__((aligned(64)));
static int64_t sl_retry_at;

static sl_call *sl_next_call(sl_helper *self) {
    for (;;) {
        uintptr_t word = SL_LOAD(&self->word);
        if (word != SL_AWAKE) {
            if (SL_REPLACE(&self->word, word, SL_BUSY))
                return (sl_call *)word;
        } else if (SL_REPLACE(&self->word, SL_AWAKE, SL_SLEEPING)) {
            PyThread_acquire_lock(self->wake, WAIT_LOCK);
        }
    }
}

/* What a helper does, for ever. */
static void sl_help(void *argument) {
    sl_helper *self = (sl_helper *)argument;
    sl_workspace *own = NULL;
    sl_block_signals();
    /* a thread starts with the environment of the one that started it */
    sl_default_environment();
    for (;;) {
        sl_call *call = sl_next_call(self);
        if (own == NULL)
            own = sl_new_workspace();
        while (own != NULL && !SL_PEEK(&call->stop) && !SL_PEEK(&call->closed)) {
            Py_ssize_t block = SL_FETCH_ADD(&call->taken, 1);
            if (block >= call->blocks)
                break;
            call->work(call->context, block, own->scratch);
        }
        /* free before it leaves, so that the caller's next call finds it */
        SL_STORE(&self->word, SL_AWAKE);
        {
            PyThread_type_lock done = call->done;
            if (SL_FETCH_ADD(&call->present, -1) == 1)
                PyThread_release_lock(done);
        }
    }
}

/* Starts a thread whose first call this is. */
static int sl_start(sl_helper *helper, sl_call *call) {
    if (sl_clock() < SL_PEEK(&sl_retry_at) || !SL_REPLACE(&helper->word, SL_NONE, (uintptr_t)call))
        return 0;
    if (helper->wake == NULL)
        helper->wake = sl_new_lock();
    if (helper->wake != NULL && PyThread_start_new_thread(sl_help, helper) != (unsigned long)-1)
        return 1;
    SL_STORE(&helper->word, SL_NONE);
    SL_STORE(&sl_retry_at, sl_clock() + SL_RETRY);
    return 0;
}

/* Offers the call to helpers. Only the first `wanted` of all are started, so that there are no more of them
   than one call has asked for, however many calls there are. */
static void sl_offer(sl_call *call, int wanted) {
    int i;
    if (wanted > SL_MAX_HELPERS)
        wanted = SL_MAX_HELPERS;
    SL_STORE(&call->present, wanted + 1);
    for (i = 0; i < SL_MAX_HELPERS && call->helpers < wanted; i++) {
        sl_helper *helper = &sl_helpers[i];
        uintptr_t word = SL_LOAD(&helper->word);
        if (word == SL_NONE) {
            if (i >= wanted || !sl_start(helper, call))
                break;
        } else if ((word != SL_AWAKE && word != SL_SLEEPING)
                   || !SL_REPLACE(&helper->word, word, (uintptr_t)call)) {
            continue;
        } else if (word == SL_SLEEPING) {
            PyThread_release_lock(helper->wake);
        }
        call->helper[call->helpers++] = (unsigned char)i;
    }
    SL_FETCH_ADD(&call->present, call->helpers - wanted);
}

/* Withdraws the call from the helpers that have not taken it, and waits until the others have left. */
static void sl_gather(sl_call *call, int asks) {
    int leaving = 1, i;
    int64_t until;
    if (call->helpers == 0)
        return;
    for (i = 0; i < call->helpers; i++)
        leaving += SL_REPLACE(&sl_helpers[call->helper[i]].word, (uintptr_t)call, SL_AWAKE);
    call->helpers = 0;
    if (SL_FETCH_ADD(&call->present, -leaving) == leaving)
        return;
    until = sl_clock() + SL_SPIN;
    while (SL_LOAD(&call->present) != 0 && sl_clock() < until)
        SL_PAUSE();
    while (PyThread_acquire_lock_timed(call->done, asks ? SL_WAIT : -1, 0) != PY_LOCK_ACQUIRED)
        sl_ask_in_time(call);
    /* the lock orders memory well enough, but not in the eyes of a thread sanitizer that lacks sem_clockwait */
    (void)SL_LOAD(&call->present);
}

/* Works on all blocks, with as many helpers as can be had up to a number. Returns 0, or -1 with an exception set
   where a signal's handler has raised one. Called without the GIL; nobody works for the call afterwards. */
static int sl_run(sl_call *call, sl_work work, void *context, Py_ssize_t blocks, int helpers, sl_workspace *own) {
    call->work = work;
    call->context = context;
    call->blocks = blocks;
    call->taken = 0;
    call->stop = call->closed = 0;
    call->present = 1;
    call->asks = PyThread_get_thread_ident() == sl_main_thread && sl_number_asking < SL_MAX_ASKING;
    call->questions = 0;
    call->helpers = 0;
    if (helpers > 0 && own->done == NULL)
        own->done = sl_new_lock();
    call->done = own->done;
    if (helpers > 0 && call->done != NULL)
        sl_offer(call, helpers);
    while (!SL_PEEK(&call->stop)) {
        Py_ssize_t block = SL_FETCH_ADD(&call->taken, 1);
        if (block >= blocks)
            break;
        work(context, block, own->scratch);
        sl_ask_in_time(call);
    }
    sl_gather(call, call->asks);
    return call->stop ? -1 : 0;
}

/* ---- fork ---------------------------------------------------------------------------------------- */

/* In the process that is about to fork: calls of this thread, in the middle of which it does so, go on alone on
   either side, as the child will have no helpers. */
static void sl_before_fork(void) {
    sl_call *call;
    if (PyThread_get_thread_ident() != sl_main_thread)
        return;
    for (call = sl_asking; call != NULL; call = call->outer) {
        SL_STORE(&call->closed, 1);
        sl_gather(call, 0);
    }
}

/* In the child: its parent's helpers are forgotten, whatever they were at. */
static void sl_after_fork(void) {
    int i;
    for (i = 0; i < SL_MAX_HELPERS; i++) {
        sl_helpers[i].word = SL_NONE;
        sl_helpers[i].wake = NULL;
    }
    sl_retry_at = 0;
    if (PyThread_get_thread_ident() != sl_main_thread) {
        sl_asking = NULL;
        sl_number_asking = 0;
    }
    sl_main_thread = PyThread_get_thread_ident();
}

#endif
