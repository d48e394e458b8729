/* The C ABI of libvrambroker.so: what Python's ctypes, torch's pluggable allocator and a preload library call.
 *
 * Every call is thread-safe, takes no GIL, never exits the process, never prints, and never throws across this border.
 * A call that fails returns a vrb_status other than VRB_OK, fills the vrb_error given (which may be NULL) and changes
 * nothing. Memory handed out stays at its address until it is freed; its pages may come and go with its tag.
 *
 * After fork() the child owns nothing of this: every call answers VRB_FORKED there, vrb_free does nothing, and leased
 * ranges are not mapped in the child.
 */
#ifndef VRAMBROKER_H
#define VRAMBROKER_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define VRB_ABI_VERSION 1
#define VRB_API __attribute__((visibility("default")))

typedef struct vrb_client vrb_client;
typedef struct vrb_lease vrb_lease;

typedef enum vrb_status {
  VRB_OK = 0,
  VRB_REFUSED = 1,      /* the daemon refused: error, message and detail are its answer */
  VRB_INVALID = 2,      /* InvalidArgument, found out here */
  VRB_WRONG_STATE = 3,  /* WrongState, found out here: a tag that is paused, a client that is closed */
  VRB_NOT_QUIESCENT = 4,/* NotQuiescent, found out here: a use scope is open */
  VRB_UNAVAILABLE = 5,  /* BrokerUnavailable: no daemon at the socket */
  VRB_LOST = 6,         /* BrokerLost: the connection is gone and could not be renewed */
  VRB_DEVICE = 7,       /* DriverFailed: the driver or the kernel refused a call here */
  VRB_VERSION = 8,      /* VersionMismatch */
  VRB_FORKED = 9,       /* this process was forked from the one that connected */
  VRB_UNKNOWN_TAG = 10  /* UnknownTag, found out here */
} vrb_status;

typedef struct vrb_error {
  char name[64];        /* the error's class name, as in STYLE.md's table */
  char message[512];
  char subject[128];    /* the tag or scope that it is about, or empty */
  uint32_t detail_size; /* bytes of a serialized vrambroker.v1.ErrorDetail; 0 if there is none */
  uint8_t detail[8192];
} vrb_error;

typedef enum vrb_contents { VRB_KEEP = 1, VRB_DROP = 2, VRB_ZERO = 3 } vrb_contents;

typedef struct vrb_info {
  uint64_t session;
  uint8_t token[16];
  uint64_t capacity_bytes;
  uint64_t frame_bytes_min;
  char name[128];       /* as the daemon gave it */
  char device[128];
  char version[64];     /* the daemon's */
} vrb_info;

typedef struct vrb_stats {
  uint64_t leases;
  uint64_t reserved_bytes;   /* virtual addresses reserved */
  uint64_t mapped_bytes;     /* frames mapped now */
  uint64_t allocated_bytes;  /* handed out by vrb_malloc and not freed, paused ones included */
  uint64_t allocations;
  uint64_t copied_out_bytes; /* since the client was opened */
  uint64_t copied_in_bytes;
  uint64_t requests;         /* sent to the daemon since the client was opened */
  uint64_t reconnects;
} vrb_stats;

VRB_API int vrb_abi_version(void);

/* Attach this process as `name` to the daemon whose handle socket is at `socket_path`.
 * device: "host" or "cuda" (the GPU that the daemon serves), or as make_device in src/device.h has it. Starts the agent thread. Ownership: the client lives until the process ends; vrb_close only ends its use. */
VRB_API vrb_status vrb_connect(const char *socket_path, const char *name, const char *device, const char *version,
                               uint32_t timeout_ms, vrb_client **client, vrb_error *error);

/* End the use of the client: leases without live allocations are returned, and once the last allocation is freed the
 * session says goodbye. Memory still allocated stays valid, and is freed as ever. Closing twice is no error. */
VRB_API vrb_status vrb_close(vrb_client *client, vrb_error *error);

VRB_API vrb_status vrb_get_info(vrb_client *client, vrb_info *info, vrb_error *error);
VRB_API vrb_status vrb_get_stats(vrb_client *client, vrb_stats *stats, vrb_error *error);

/* Find or make the range for this tag and policy. Reserves addresses; asks the daemon for nothing. */
VRB_API vrb_status vrb_lease_open(vrb_client *client, const char *tag, vrb_contents contents, vrb_lease **lease,
                                  vrb_error *error);

/* Allocate from the range, growing it by frames if need be. Blocks only for what is certain, `timeout_ms` at most.
 * Aligned to 512 bytes; requests of 1 MiB and more to 2 MiB. A paused tag answers VRB_WRONG_STATE. */
VRB_API vrb_status vrb_malloc(vrb_lease *lease, size_t size, uint32_t timeout_ms, void **pointer, vrb_error *error);

/* Free in any state: resident, paused, parked or in mid-recall, before or after vrb_close. */
VRB_API vrb_status vrb_free(vrb_client *client, void *pointer, vrb_error *error);

/* Pause every lease of these tags. The caller has seen to it that its own work on them is done.
 * With release, returns when their frames have left. With discard, contents that would be kept are worth nothing in this
 * pause, but for those of tags that are paused already. An open use scope answers VRB_NOT_QUIESCENT. */
VRB_API vrb_status vrb_pause(vrb_client *client, const char *const *tags, uint32_t count, int release, int discard,
                             uint32_t timeout_ms, vrb_error *error);

/* Bring them back, all or none. same_pages (count entries, may be NULL): 1 where no page of the tag has changed.
 * timeout_ms 0 waits only for what is certain. */
VRB_API vrb_status vrb_resume(vrb_client *client, const char *const *tags, uint32_t count, uint32_t timeout_ms,
                              uint8_t *same_pages, vrb_error *error);

/* Map every frame of these tags read-only, now and when they come back from a pause, so that their contents provably don't
 * change: they are copied out once at most. The caller has seen to it that its own work on them is done, as for vrb_pause.
 * Who writes to them then has a fault: SIGSEGV on the host, a dead context on a GPU. Nothing more is allocated under them
 * (VRB_WRONG_STATE); freeing, pausing, resuming and use scopes are as ever. Tags that are sealed, or paused, may be sealed.
 * VRB_UNKNOWN_TAG where nothing is leased, VRB_INVALID where contents are not kept. Without an answer (VRB_LOST, or
 * WaitExpired) they stay read-only, since the daemon may have heard it. */
VRB_API vrb_status vrb_seal(vrb_client *client, const char *const *tags, uint32_t count, uint32_t timeout_ms,
                            vrb_error *error);
/* Make them writable again; what was copied of them is void. After a failure they may still be read-only. */
VRB_API vrb_status vrb_unseal(vrb_client *client, const char *const *tags, uint32_t count, uint32_t timeout_ms,
                              vrb_error *error);
/* sealed: 1 if the tag is sealed. Unknown tags answer VRB_UNKNOWN_TAG. */
VRB_API vrb_status vrb_tag_sealed(vrb_client *client, const char *tag, int *sealed, vrb_error *error);

/* Enter and leave a use scope on these tags. Entering needs them resident: a paused or closing tag answers
 * VRB_WRONG_STATE and nothing is entered. The last one out of a tag that is asked to pause lets the pause proceed.
 * In a forked child leaving is VRB_OK, and does nothing: the scope is its parent's. */
VRB_API vrb_status vrb_use_enter(vrb_client *client, const char *const *tags, uint32_t count, const char *scope,
                                 vrb_error *error);
VRB_API vrb_status vrb_use_exit(vrb_client *client, const char *const *tags, uint32_t count, const char *scope,
                                vrb_error *error);

/* Enter as vrb_use_enter does; what is paused is resumed first, as by vrb_resume, and what is about to be paused is waited
 * for, timeout_ms in all. */
VRB_API vrb_status vrb_use_enter_resuming(vrb_client *client, const char *const *tags, uint32_t count, const char *scope,
                                          uint32_t timeout_ms, vrb_error *error);

/* Notices: what a thread of the application waits for, to run its callbacks. */
typedef enum vrb_notice_kind {
  VRB_NOTICE_CLOSED = 0,      /* the client is closed: there will be no more */
  VRB_NOTICE_PAUSE_ASKED = 1, /* a pause from outside: answer vrb_consent, or vrb_decline */
  VRB_NOTICE_RESUMED = 2      /* a tag is back that somebody else has resumed; or a pause that was asked for is off */
} vrb_notice_kind;

typedef struct vrb_notice {
  uint32_t kind;
  uint32_t same_pages;  /* of a resume: no page of the tag has changed */
  uint64_t order;       /* of a pause: what the answer names */
  char tags[16644];     /* the tags that are watched, with a space between */
} vrb_notice;

/* Have notices of this kind made of a tag, or of all (null). A tag that is watched for VRB_NOTICE_PAUSE_ASKED can be paused
 * from outside without use scopes; until vrb_consent its gate stays open. */
VRB_API vrb_status vrb_watch(vrb_client *client, vrb_notice_kind kind, const char *tag, vrb_error *error);
/* Waits for the next notice, for ever. One thread at a time. */
VRB_API vrb_status vrb_next_notice(vrb_client *client, vrb_notice *notice, vrb_error *error);
/* Say which callback is running for an order, for whoever waits. An order that is void by now is no error. */
VRB_API vrb_status vrb_begin_callback(vrb_client *client, uint64_t order, const char *tag, const char *callback,
                                      vrb_error *error);
/* The tags are at rest, but for open use scopes, which are waited for: the pause may take effect. Waits for this process's
 * work on the device first; if that can't be (a CUDA graph is being captured), it is declined. Where it was called off
 * meanwhile, or is later, notices of VRB_NOTICE_RESUMED follow. */
VRB_API vrb_status vrb_consent(vrb_client *client, uint64_t order, vrb_error *error);
/* They are not: whoever asked is refused (NotQuiescent), with these words. */
VRB_API vrb_status vrb_decline(vrb_client *client, uint64_t order, const char *tag, const char *callback, const char *why,
                               vrb_error *error);

/* Between these, new memory of the lease is written to on its owner's behalf, and no pause of its tag takes effect: one
 * from outside waits, one of this process answers VRB_NOT_QUIESCENT. They are no use scope. A paused or closing tag answers
 * VRB_WRONG_STATE. In a forked child the end is VRB_OK, and does nothing. */
VRB_API vrb_status vrb_fill_begin(vrb_lease *lease, vrb_error *error);
VRB_API vrb_status vrb_fill_end(vrb_lease *lease, vrb_error *error);

/* lost: 1 if the daemon is gone, or knows this session no longer, so that the process had better connect anew; 0 if the
 * client is connected. Where it had given up, it tries once more first; a retry under way is waited for up to timeout_ms. */
VRB_API vrb_status vrb_is_lost(vrb_client *client, uint32_t timeout_ms, int *lost, vrb_error *error);

/* paused: 1 if the tag is paused (by whomever). Unknown tags answer VRB_UNKNOWN_TAG. */
VRB_API vrb_status vrb_tag_paused(vrb_client *client, const char *tag, int *paused, vrb_error *error);

/* bytes: what is allocated under the tag, paused or not. Unknown tags answer VRB_UNKNOWN_TAG. */
VRB_API vrb_status vrb_tag_allocated(vrb_client *client, const char *tag, uint64_t *bytes, vrb_error *error);

/* DLPack: a byte tensor over a new allocation, as a DLManagedTensor* (version 0.x layout) whose deleter frees it
 * natively. Ownership: the caller's, until it is consumed. */
VRB_API vrb_status vrb_tensor(vrb_lease *lease, size_t size, uint32_t timeout_ms, void **dl_managed_tensor,
                              vrb_error *error);

/* Where memory is leased. */
typedef struct vrb_place {
  uint32_t contents; /* vrb_contents */
  uint32_t paused;   /* 1 if its tag is paused */
  char tag[128];
} vrb_place;

/* Tell whose memory these bytes are. VRB_INVALID where they are not in one allocation of this client. */
VRB_API vrb_status vrb_find(vrb_client *client, const void *pointer, size_t size, vrb_place *place, vrb_error *error);

/* What is parked of leased memory, to be read: a DLManagedTensor* of bytes on the CPU, over the arena's own pages and
 * read-only (who writes to it has a SIGSEGV). All of it must have left the device: VRB_WRONG_STATE unless it was paused and
 * released, and under contents that are not kept. It holds these contents until its tag is resumed; later it is still
 * readable, with whatever the arena has there by then. Ownership: the caller's, until it is consumed; a view keeps the
 * arena's file. */
VRB_API vrb_status vrb_parked_tensor(vrb_client *client, const void *pointer, size_t size, uint32_t timeout_ms,
                                     void **dl_managed_tensor, vrb_error *error);

/* Memory that travels. What is sent stays where it is and is its owner's: who is told of it, in another process that is
 * attached to the same daemon, can map the same pages. An export holds no memory: until it is settled, its sender must not
 * free what was sent. It is settled once it was received as often as it was sent, and nothing received is in use. */
typedef struct vrb_export {
  uint8_t key[16];
  uint64_t offset_bytes;  /* from the beginning of the lease's range */
  uint32_t read_only;     /* 1: who receives it can't write to it */
} vrb_export;

/* Send leased memory, or memory that was received. VRB_INVALID where these bytes are neither. What is sealed, or was
 * received so, is read-only in any case. In any state of its tag. */
VRB_API vrb_status vrb_send(vrb_client *client, const void *pointer, size_t size, int read_only, uint32_t timeout_ms,
                            vrb_export *sent, vrb_error *error);
/* Send the same once more; UnknownLease if it is settled. */
VRB_API vrb_status vrb_send_again(vrb_client *client, const uint8_t key[16], uint32_t timeout_ms, vrb_error *error);
/* Settle what was sent and nobody has received. */
VRB_API vrb_status vrb_unexport(vrb_client *client, uint32_t timeout_ms, vrb_error *error);
/* Take the keys of exports that are settled, as many as there is room for; each is told once. */
VRB_API vrb_status vrb_take_settled(vrb_client *client, uint8_t (*keys)[16], uint32_t room, uint32_t *count,
                                    vrb_error *error);

typedef struct vrb_received {
  uint64_t number;
  void *address;
  uint32_t own;       /* 1: it is this process's own lease, at its own address */
  uint32_t writable;
} vrb_received;

/* Map what was sent. While its tag is paused, or about to be: WrongState, from the daemon. UnknownLease where it is not
 * there any more. Its tag can't be paused before vrb_end_read; the mapping may stay until then, or longer. */
VRB_API vrb_status vrb_receive(vrb_client *client, const uint8_t key[16], uint64_t offset_bytes, size_t size,
                               uint32_t timeout_ms, vrb_received *received, vrb_error *error);
/* In a forked child this is VRB_OK, and does nothing: what was received is its parent's, and not mapped there. */
VRB_API vrb_status vrb_end_read(vrb_client *client, uint64_t number, vrb_error *error);
/* A DLManagedTensor* of bytes over what was received, whose deleter ends the read. Ownership: the caller's, as of the number
 * until then. */
VRB_API vrb_status vrb_received_tensor(vrb_client *client, const vrb_received *received, size_t size,
                                       void **dl_managed_tensor, vrb_error *error);

/* Hooks of torch.cuda.memory.CUDAPluggableAllocator. A lease has one of the malloc hooks vrb_torch_malloc_00 to
 * vrb_torch_malloc_ff for good, by this number; its allocations come from that lease, in any thread. InvalidArgument when
 * all are taken. A malloc hook answers NULL for "out of memory" and for nothing else: for other errors it throws a
 * std::runtime_error, which torch hands to Python as a RuntimeError. It waits only for what is certain. */
#define VRB_TORCH_HOOKS 256
VRB_API vrb_status vrb_torch_hook(vrb_lease *lease, uint32_t *hook, vrb_error *error);

/* The free hook: waits until what was given to the stream is done; while the stream is captured, that is put off. */
VRB_API void vrb_torch_free(void *pointer, ptrdiff_t size, int device, void *stream);

/* Find the client by which this process is attached to the daemon at `socket_path` already: null if there is none that is
 * open. The preload library attaches before Python does. */
VRB_API vrb_status vrb_attached(const char *socket_path, vrb_client **client, vrb_error *error);

/* CUDA's runtime, as the library in native/preload stands in front of it. It hands on each call of the program's, with the
 * runtime's own functions; results are cudaError_t. With VRAMBROKER_TAG or TMS_INIT_ENABLE in its environment a process
 * leases its own memory: all that it asks the runtime for, in any thread but those that were told otherwise. */
typedef struct vrb_cudart {
  int (*malloc)(void **pointer, size_t size);
  int (*free)(void *pointer);
  int (*mem_get_info)(size_t *free, size_t *total);
  int (*get_device)(int *ordinal);
  int (*get_last_error)(void);
} vrb_cudart;

/* Leased, where the process leases its own memory; otherwise the runtime's, and if that has no memory, once more after the
 * broker has made room. Blocks only for what is certain. */
VRB_API int vrb_cuda_malloc(const vrb_cudart *real, void **pointer, size_t size);
/* Waits for this process's work on the device, as the runtime does. What was never leased is the runtime's to free. */
VRB_API int vrb_cuda_free(const vrb_cudart *real, void *pointer);
/* total is the device's. free is what a lease of this session would be lent at once; so total - free is what this process
 * has in use, leased or not, what others have in use and can't give, and what the broker keeps free or does not lend. */
VRB_API int vrb_cuda_mem_get_info(const vrb_cudart *real, size_t *free, size_t *total);

/* What a program is given that asks the runtime for an entry point of the driver, which is `entry`: where the process leases
 * its own memory, some calls for memory that a program maps for itself (torch's expandable segments) come here. */
VRB_API void *vrb_driver_entry(const vrb_cudart *real, const char *symbol, void *entry);

/* Whether what this thread allocates by vrb_cuda_malloc is leased, from now on. Returns what it was. At first it is. */
VRB_API int vrb_thread_leases(int lease);

/* Have the process's own memory come from elsewhere than from what it has, which is about to be paused; or from anywhere
 * again. */
VRB_API vrb_status vrb_process_divert(vrb_client *client, int elsewhere, vrb_error *error);

/* The tags of the process's own memory, with a space between; empty where it leases none. A new one is taken while all of
 * them are paused. */
VRB_API vrb_status vrb_process_tags(vrb_client *client, char *tags, size_t size, vrb_error *error);

/* What the last call of a malloc hook in this thread came to. */
VRB_API vrb_status vrb_torch_last_error(vrb_error *error);

#ifdef __cplusplus
}
#endif
#endif /* VRAMBROKER_H */
