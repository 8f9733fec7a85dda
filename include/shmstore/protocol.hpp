#pragma once
/// The wire protocol of shmstore. This header is its specification; docs quote it.
///
/// Transport: one SOCK_SEQPACKET Unix socket per session. One message is one frame: a 16-byte
/// little-endian header and a body of at most kFrameBytesMax − 16 bytes. The daemon knows the peer
/// from SO_PEERCRED, SO_PEERGROUPS and SO_PEERPIDFD at accept; nothing in a frame identifies it.
///
/// Order: `hello` first. Each request gets exactly one reply with its request id; request ids are
/// chosen by the client and strictly increase within a session. Replies to blocking requests
/// (attach, cached, wait, seal and create with a deadline) may overtake each other; all other
/// replies come in request order. Error reply: `status` is an ErrorCode, the body its text
/// (UTF-8, at most kErrorTextBytesMax). A frame that cannot be parsed gets an error reply where a
/// header could be read, then the connection is closed.
///
/// Descriptors: only the daemon sends them (SCM_RIGHTS, exactly one, header flag kFlagDescriptor),
/// only with replies that carry an ArrayBody, and only when this session's lease has not had it.
/// `segment` sends it again at any time. At most one unread descriptor message is in flight per
/// session. A client that sends descriptors is disconnected.
///
/// Two planes. Data plane (op < 64): fixed structs, then a tail of variable parts in the order the
/// struct's comment gives; a message whose length is not exactly struct + tail is refused.
/// Admin plane (op ≥ 64): one JSON document each way; comments at `Op` give the fields.
///
/// Compatibility: majors must be equal; a minor may be higher on either side, new fields go into
/// reserved bytes, which are zero now and refused when not zero.

#include <cstdint>
#include <type_traits>

#include "shmstore/array.hpp"
#include "shmstore/error.hpp"

namespace shmstore::protocol {

inline constexpr std::uint32_t kMagic = 0x314d4853U;  ///< "SHM1", first word of hello.
inline constexpr std::uint16_t kMajor = 1;
inline constexpr std::uint16_t kMinor = 0;
inline constexpr std::uint64_t kFeatures = 0;  ///< Feature bits this version knows: none yet.

inline constexpr std::uint32_t kFrameBytesMax = 65536;     ///< Header and body of one message.
inline constexpr std::uint32_t kErrorTextBytesMax = 1024;  ///< Text of an error reply.
inline constexpr std::uint32_t kJsonDepthMax = 8;          ///< Nesting of an admin document.
inline constexpr std::uint32_t kListLimitMax = 128;        ///< Arrays in one page of `list`.
/// Of one session: blocked requests, requests that the daemon works on, loader roles.
inline constexpr std::uint32_t kOpenRequestsMax = 1024;
inline constexpr std::int64_t kForever = -1;  ///< A timeout_ms that never ends.
inline constexpr std::int64_t kTimeoutMsMax = std::int64_t{1} << 52;
inline constexpr std::uint64_t kGraceMsDefault = 60'000;  ///< Life of a hand-over lease.
inline constexpr std::uint64_t kGraceMsMax = 3'600'000;

enum class Op : std::uint16_t {
  hello = 1,       ///< HelloRequest → HelloReply.
  ping = 2,        ///< Empty both ways: the bare cost of a round trip.
  create = 3,      ///< CreateRequest → ArrayBody with a writable descriptor. A draft, or mutable.
  seal = 4,        ///< SealRequest → SealReply. The session's write lease becomes a read lease.
  attach = 5,      ///< AttachRequest → ArrayBody. By name or by id.
  segment = 6,     ///< SegmentRequest → ArrayBody, always with the descriptor (but of a lease
                   ///< that only holds). Idempotent.
  release = 7,     ///< ReleaseRequest → empty. Gives back grants of one lease.
  cached = 8,      ///< CachedRequest → ArrayBody; role says array or loader.
  wait = 9,        ///< WaitRequest → WaitReply.
  cancel = 10,     ///< CancelRequest → empty, after the reply of the request it names
                   ///< (`aborted`, unless that reply was under way already).
  abort = 11,      ///< AbortRequest → empty. Drops a draft, gives up a loader's role, or an
                   ///< exclusive lease, half-written: the array is broken.
  handover = 12,   ///< HandoverRequest → empty, with kHandoverOnce HandoverReply. Takes or renews
                   ///< the hand-over lease.
  fork = 13,       ///< Reserved for the fast path: protocol_error.
  put_batch = 14,  ///< Reserved: protocol_error.
  attach_batch = 15,  ///< Reserved: protocol_error.
  received = 16,      ///< ReceivedRequest → empty. Ends the hand-over lease of one handle.
  publish = 17,       ///< PublishRequest → SealReply. What was made with kCreateUnseen is there.

  // Admin plane. TARGET is {"name": "x" or "~uid/x"} or {"id": "decimal", "store_id"?: "decimal"}.
  list = 64,       ///< {"prefix"?, "uid"?, "cursor"?, "limit"?}
                   ///< → {"arrays": [INFO], "cursor": str|null}; a page may be short or empty.
  info = 65,       ///< TARGET → INFO
  holders = 66,    ///< TARGET → {"holders": [{pid, command, uid, access, since}]}; of pickled
                   ///< handles also in_flight, from_pid
  status = 67,     ///< {} → see interface: capacity, used, pooled, arrays, sessions, fds, …
  keep = 68,       ///< TARGET + {"ttl_s"?: number} → INFO
  unkeep = 69,     ///< TARGET → {}
  remove = 70,     ///< TARGET → {}. `delete`: the name now, the memory with the last lease.
  chmod = 71,      ///< TARGET + {"perms": "0644"} → INFO
  metrics = 72,    ///< {} → {"text": OpenMetrics}
  watch = 73,      ///< {"prefix"?, "uid"?} → {}; then `event` frames with this request's id.
  selfcheck = 74,  ///< {} → {"clean": bool, "problems": [str]}
  gc = 75,         ///< {} → {"freed_bytes": n, "pinned_bytes": n}. Probes and frees what is free.
  quotas = 76,     ///< {"uid"?: n, "bytes_max"?: n, "arrays_max"?: n} → the uid's quota.
                   ///< To set: root or the daemon's own user only.
  event = 127,     ///< Daemon → client only: {"event": "created|sealed|deleted|kept|unkept|
                   ///< broken|repaired|lost", "name", "id", "version", "state", "uid"}; "lost":
                   ///< events were dropped.
};

/// Flags of a header.
inline constexpr std::uint16_t kFlagReply = 1U << 0U;       ///< Daemon → client.
inline constexpr std::uint16_t kFlagDescriptor = 1U << 1U;  ///< One descriptor rides along.

struct FrameHeader {
  std::uint16_t op = 0;       ///< Op; echoed in the reply.
  std::uint16_t flags = 0;    ///< Zero in requests.
  std::uint32_t status = 0;   ///< Zero in requests; 0 or an ErrorCode in replies.
  std::uint64_t request = 0;  ///< > 0, strictly increasing in a session; echoed in the reply.
};

struct HelloRequest {
  std::uint32_t magic = kMagic;
  std::uint16_t major = kMajor;
  std::uint16_t minor = kMinor;
  std::uint64_t features_required = 0;  ///< An unknown bit here is a clean refusal.
  std::uint64_t features_wanted = 0;
  std::uint8_t token[16] = {};  ///< Zero: a new session. Resuming comes with restart.
  std::uint64_t reserved[3] = {};
};

struct HelloReply {
  std::uint32_t magic = kMagic;
  std::uint16_t major = kMajor;
  std::uint16_t minor = kMinor;
  std::uint64_t features = 0;   ///< Wanted or required features that are in force.
  std::uint64_t store_id = 0;   ///< Random per store; part of every handle.
  std::uint8_t token[16] = {};  ///< Names this session for a later resume.
  std::uint32_t uid = 0;        ///< The caller, as the daemon knows it.
  std::uint32_t daemon_pid = 0;
  std::uint32_t table_bytes = 0;  ///< Room for the ref table whose fd comes later; 0: none.
  std::uint32_t grace_ms_default = 0;
  std::uint64_t reserved[3] = {};
};

/// Options of a CreateRequest.
inline constexpr std::uint16_t kCreateMutable = 1U << 0U;  ///< Shared read-write at once.
inline constexpr std::uint16_t kCreateKeep = 1U << 1U;     ///< The name pins the array.
inline constexpr std::uint16_t kCreateReplace = 1U << 2U;  ///< Publish over an older version.
inline constexpr std::uint16_t kCreateHard = 1U << 3U;     ///< Seal hard, whatever seal() says.
inline constexpr std::uint16_t kCreateCached = 1U << 4U;   ///< The loader's array of `cached`.
/// Mutable: a draft until `publish`. Nobody sees it, and it replaces nothing, before its creator
/// can reach the bytes; one that cannot aborts it, or ends.
inline constexpr std::uint16_t kCreateUnseen = 1U << 5U;
inline constexpr std::uint16_t kCreateOptions = 0x3f;

/// Tail: u64 dims[ndim], name, dtype, attrs.
struct CreateRequest {
  std::uint64_t bytes = 0;      ///< Must equal itemsize × shape.
  std::int64_t timeout_ms = 0;  ///< How long to wait for capacity or quota; 0 never.
  std::uint64_t ttl_ms = 0;     ///< With keep: life in CLOCK_BOOTTIME; 0 no limit.
  std::uint32_t ns_uid = QualifiedName::kOwn;
  std::uint16_t name_bytes = 0;  ///< 0: anonymous.
  std::uint16_t dtype_bytes = 0;
  std::uint16_t attrs_bytes = 0;  ///< 0: {}.
  std::uint16_t perms = kPermsDefault;
  std::uint16_t options = 0;
  std::uint8_t ndim = 0;
  std::uint8_t order = 0;
};

/// What role a `cached` caller got.
enum class Role : std::uint8_t {
  array = 0,
  loader = 1
};

/// Options bits of an ArrayBody.
inline constexpr std::uint16_t kArrayKept = 1U << 0U;
inline constexpr std::uint16_t kArrayHard = 1U << 1U;  ///< Every seal is a hard one: swap first.

/// Describes an array and where its bytes are. Tail: u64 dims[ndim], name, dtype.
/// With role loader everything else is zero and there is no tail.
struct ArrayBody {
  std::uint64_t id = 0;
  std::uint64_t segment = 0;  ///< Names the descriptor, for the client's mapping cache.
  std::uint64_t offset = 0;   ///< First byte of the array within the segment.
  std::uint64_t bytes = 0;    ///< Bytes of the array; 0 for an empty one, which has no segment.
  std::uint64_t segment_bytes = 0;  ///< Length of the segment's file: what to map at most.
  std::uint64_t version = 0;        ///< 0 while it is a draft.
  std::uint32_t owner_uid = 0;
  std::uint32_t ns_uid = 0;  ///< Namespace of the name.
  std::uint16_t name_bytes = 0;
  std::uint16_t dtype_bytes = 0;
  std::uint16_t perms = 0;
  std::uint16_t options = 0;  ///< kArrayKept, kArrayHard
  std::uint8_t state = 0;     ///< State
  std::uint8_t access = 0;    ///< Access of the lease.
  std::uint8_t order = 0;     ///< Order
  std::uint8_t ndim = 0;
  std::uint8_t seal = 0;  ///< Seal
  std::uint8_t role = 0;  ///< Role; 0 but in replies to `cached`.
  std::uint16_t reserved = 0;
};

struct SealRequest {
  std::uint64_t id = 0;
  std::int64_t wait_ms = 0;  ///< How long to wait for other writers; 0: busy at once.
  std::uint32_t hard = 0;    ///< 1: F_SEAL_WRITE. The client must have swapped its writable map.
  std::uint32_t reserved = 0;
};

/// Twice is fine. Errors: permission_denied (it would replace another user's array), aborted.
struct PublishRequest {
  std::uint64_t id = 0;  ///< A draft that this session made with kCreateUnseen.
};

/// An array that other users may write, or could ever, takes the hard seal only. A request without
/// `hard` that then fails because somebody could still write gets a reply with a state other than
/// sealed: nothing has changed; swap the writable map and ask with `hard`.
struct SealReply {
  std::uint64_t id = 0;
  std::uint64_t version = 0;
  std::uint8_t state = 0;  ///< State
  std::uint8_t seal = 0;   ///< Seal
  std::uint8_t reserved[6] = {};
};

/// Options of an AttachRequest.
inline constexpr std::uint8_t kAttachHandover = 1U << 0U;  ///< By a pickled handle: renews its
                                                           ///< hand-over lease.
inline constexpr std::uint8_t kAttachRepair = 1U << 1U;    ///< Exclusive: of a broken array, too.
/// By a pickled handle that is for one receiver, whose number `newer_than` is: begins the grace of
/// that handle's lease anew. `received` ends it, once the caller can reach the bytes.
inline constexpr std::uint8_t kAttachOnce = 1U << 2U;
inline constexpr std::uint8_t kAttachOptions = 0x07;

/// Exclusive access: the array is mutable, and nobody else maps it. Who has to wait for it, or for
/// an exclusive holder, is served in order of arrival; without a timeout the reply is busy and
/// names the holders. The release hands over; a session that ends instead leaves the array broken,
/// and attaches are aborted until one with kAttachRepair has been released.
/// Tail: name (empty when id is given).
struct AttachRequest {
  std::uint64_t id = 0;          ///< 0: by name.
  std::uint64_t store_id = 0;    ///< With an id from a handle: its store; 0: not checked.
  std::uint64_t newer_than = 0;  ///< By name: wait for a version above this one; 0: any. With
                                 ///< kAttachOnce: the handle's number.
  std::int64_t timeout_ms = 0;   ///< Bounds the wait for a draft, for newer_than, for a turn.
  std::uint32_t ns_uid = QualifiedName::kOwn;
  std::uint16_t name_bytes = 0;
  std::uint8_t access = 0;   ///< Access
  std::uint8_t options = 0;  ///< kAttach…
};

struct SegmentRequest {
  std::uint64_t id = 0;
  std::uint8_t access = 0;  ///< Access of a lease that this session holds.
  std::uint8_t reserved[7] = {};
};

/// A lease is one per (session, array, access). Every successful create or attach grants it once
/// more; it ends when all grants have been given back, so that a release can never overtake an
/// attach of another thread. A creator that releases its unsealed draft aborts it.
struct ReleaseRequest {
  std::uint64_t id = 0;
  std::uint32_t grants = 0;  ///< ≥ 1
  std::uint8_t access = 0;
  std::uint8_t reserved[3] = {};
};

/// Tail: name.
struct CachedRequest {
  std::int64_t timeout_ms = 0;
  std::uint32_t ns_uid = QualifiedName::kOwn;
  std::uint16_t name_bytes = 0;
  std::uint16_t reserved = 0;
};

/// Tail: name. Waits for existence too: a missing name is no error before the deadline.
struct WaitRequest {
  std::uint64_t newer_than = 0;
  std::int64_t timeout_ms = 0;
  std::uint32_t ns_uid = QualifiedName::kOwn;
  std::uint16_t name_bytes = 0;
  std::uint16_t reserved = 0;
};

struct WaitReply {
  std::uint64_t id = 0;
  std::uint64_t version = 0;
  std::uint8_t state = 0;
  std::uint8_t reserved[7] = {};
};

/// The request that it names is answered in any case: `aborted`, or what it came to all the same. A
/// seal that the kernel is asked about is answered when the kernel has.
struct CancelRequest {
  std::uint64_t request = 0;  ///< Unknown or answered: no error.
};

/// Tail: name. By id: drop this draft, or leave what is held exclusively broken. By name (id 0):
/// give up the loader's role for it.
struct AbortRequest {
  std::uint64_t id = 0;
  std::uint32_t ns_uid = QualifiedName::kOwn;
  std::uint16_t name_bytes = 0;
  std::uint16_t reserved = 0;
};

struct HandoverRequest {
  std::uint64_t id = 0;        ///< The caller must hold a lease on it.
  std::uint64_t grace_ms = 0;  ///< 0: the daemon's default; at most kGraceMsMax.
  std::uint8_t options = 0;    ///< kHandover…
  std::uint8_t reserved[7] = {};
};

/// The handle goes to one receiver. It gets a hand-over lease of its own, which ends when a session
/// of the same user says `received`, or with its grace.
inline constexpr std::uint8_t kHandoverOnce = 1U << 0U;

/// Of a handle for one receiver.
struct HandoverReply {
  std::uint64_t handle = 0;  ///< Its number among those of the array. 0: too many are on their way;
                             ///< this one has become a handle for as many as come.
};

/// The caller has what this handle named, and a lease on it. A number that is not known (its grace
/// has passed, it is somebody else's, it was said before) is no error.
struct ReceivedRequest {
  std::uint64_t id = 0;
  std::uint64_t handle = 0;
};

// Layout is the protocol: sizes and the position of padding must not drift.
static_assert(sizeof(FrameHeader) == 16 && std::is_trivially_copyable_v<FrameHeader>);
static_assert(sizeof(HelloRequest) == 64 && std::is_trivially_copyable_v<HelloRequest>);
static_assert(sizeof(HelloReply) == 80 && std::is_trivially_copyable_v<HelloReply>);
static_assert(sizeof(CreateRequest) == 40 && std::is_trivially_copyable_v<CreateRequest>);
static_assert(sizeof(ArrayBody) == 72 && std::is_trivially_copyable_v<ArrayBody>);
static_assert(sizeof(SealRequest) == 24 && std::is_trivially_copyable_v<SealRequest>);
static_assert(sizeof(PublishRequest) == 8 && std::is_trivially_copyable_v<PublishRequest>);
static_assert(sizeof(SealReply) == 24 && std::is_trivially_copyable_v<SealReply>);
static_assert(sizeof(AttachRequest) == 40 && std::is_trivially_copyable_v<AttachRequest>);
static_assert(sizeof(SegmentRequest) == 16 && std::is_trivially_copyable_v<SegmentRequest>);
static_assert(sizeof(ReleaseRequest) == 16 && std::is_trivially_copyable_v<ReleaseRequest>);
static_assert(sizeof(CachedRequest) == 16 && std::is_trivially_copyable_v<CachedRequest>);
static_assert(sizeof(WaitRequest) == 24 && std::is_trivially_copyable_v<WaitRequest>);
static_assert(sizeof(WaitReply) == 24 && std::is_trivially_copyable_v<WaitReply>);
static_assert(sizeof(CancelRequest) == 8 && std::is_trivially_copyable_v<CancelRequest>);
static_assert(sizeof(AbortRequest) == 16 && std::is_trivially_copyable_v<AbortRequest>);
static_assert(sizeof(HandoverRequest) == 24 && std::is_trivially_copyable_v<HandoverRequest>);
static_assert(sizeof(HandoverReply) == 8 && std::is_trivially_copyable_v<HandoverReply>);
static_assert(sizeof(ReceivedRequest) == 16 && std::is_trivially_copyable_v<ReceivedRequest>);

}  // namespace shmstore::protocol
