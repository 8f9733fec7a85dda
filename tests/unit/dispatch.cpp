// Frames and documents in, replies out.
#include "server/dispatch_admin.hpp"
#include "tests/unit/dispatch_bench.hpp"

using namespace shmstore;
using namespace shmstore::server;
using namespace shmstore::protocol;

// -- frames ---------------------------------------------------------------------------------------

TEST_CASE("dispatch: hello comes first, once, and names both versions when it refuses") {
  Bench bench;
  SessionState& early = bench.connect(kAlice);
  CHECK(bench.ask(early, Op::ping).is(ErrorCode::protocol_error));
  CHECK_FALSE(bench.kept());

  SessionState& other = bench.connect(kAlice);
  HelloRequest hello;
  hello.major = 9;
  const Reply refused = bench.ask(other, Op::hello, Bench::text_of(hello));
  CHECK(refused.is(ErrorCode::protocol_error));
  CHECK(has(refused.body, "9.0"));
  CHECK(has(refused.body, std::to_string(kMajor) + "." + std::to_string(kMinor)));
  CHECK_FALSE(bench.kept());

  SessionState& session = bench.connect(kAlice);
  hello = {};
  const auto reply = bench.ask(session, Op::hello, Bench::text_of(hello)).fixed<HelloReply>();
  CHECK(reply.store_id == kStoreId);
  CHECK(reply.uid == kAlice);
  CHECK(reply.table_bytes == 0);
  CHECK(bench.ask(session, Op::ping).body.empty());
  CHECK(bench.ask(session, Op::hello, Bench::text_of(hello)).is(ErrorCode::protocol_error));
  CHECK_FALSE(bench.kept());
}

TEST_CASE("dispatch: unknown features, tokens and first words are refused") {
  Bench bench;
  HelloRequest hello;
  SUBCASE("feature") {
    hello.features_required = 8;
  }
  SUBCASE("token") {
    hello.token[15] = 1;
  }
  SUBCASE("magic") {
    hello.magic = 1;
  }
  SUBCASE("reserved") {
    hello.reserved[2] = 1;
  }
  SessionState& session = bench.connect(kAlice);
  CHECK(bench.ask(session, Op::hello, Bench::text_of(hello)).is(ErrorCode::protocol_error));
  CHECK_FALSE(bench.kept());
}

TEST_CASE("dispatch: request ids grow; what is no request ends the session") {
  Bench bench;
  SessionState& session = bench.join(kAlice);
  CHECK(bench.send(session, Op::ping, "", 10));
  CHECK_FALSE(bench.send(session, Op::ping, "", 10));
  CHECK(bench.mail.replies[session.id].back().is(ErrorCode::protocol_error));

  SessionState& second = bench.join(kAlice);
  CHECK_FALSE(bench.send_raw(second, "short"));
  CHECK_FALSE(bench.send_raw(second, std::string(100, 'x')));
  CHECK_FALSE(bench.send_raw(second, Bench::text_of(FrameHeader{2, 0, 0, 99}), true));
  CHECK(has(bench.mail.replies[second.id].back().body, "65536"));
  for (unsigned op : {0U, 16U, 63U, 77U, 126U, 127U, 128U, 65535U}) {
    SessionState& third = bench.join(kAlice);
    CHECK(bench.ask(third, static_cast<Op>(op)).is(ErrorCode::protocol_error));
    CHECK_FALSE(bench.kept());
  }
}

TEST_CASE("dispatch: ops of the fast path are refused, the session stays") {
  Bench bench;
  SessionState& session = bench.join(kAlice);
  for (Op op : {Op::fork, Op::put_batch, Op::attach_batch}) {
    CHECK(bench.ask(session, op).is(ErrorCode::protocol_error));
    CHECK(bench.kept());
  }
}

// -- data plane -----------------------------------------------------------------------------------

TEST_CASE("dispatch: create, seal, attach, release") {
  Bench bench;
  SessionState& alice = bench.join(kAlice);
  const Reply created = bench.create(alice, "grid", 5000);
  const auto body = created.fixed<ArrayBody>();
  CHECK(created.header.flags == (kFlagReply | kFlagDescriptor));
  CHECK(created.descriptor.writable);
  CHECK(body.bytes == 5000);
  CHECK(body.segment_bytes == 8192);
  CHECK(body.state == static_cast<std::uint8_t>(State::draft));
  CHECK(created.body.substr(sizeof body) == Bench::text_of(std::uint64_t{5000}) + "grid|u1");

  const auto sealed = bench.seal(alice, body.id).fixed<SealReply>();
  CHECK(sealed.version == 1);
  CHECK(sealed.seal == static_cast<std::uint8_t>(Seal::soft));

  SessionState& other = bench.join(kAlice);
  const Reply attached = bench.ask(other, Op::attach, Bench::attach_text("grid"));
  CHECK(attached.fixed<ArrayBody>().id == body.id);
  CHECK(attached.descriptor.segment == body.segment);
  CHECK_FALSE(attached.descriptor.writable);
  const Reply again = bench.ask(other, Op::attach, Bench::attach_text("grid"));
  CHECK(again.header.flags == kFlagReply);
  CHECK(again.descriptor.segment == 0);

  CHECK(
      bench.ask(bench.join(kBob), Op::attach, Bench::attach_text("grid")).is(ErrorCode::not_found));
  CHECK_FALSE(bench.release(alice, body.id, Access::read).header.status);
  bench.dispatcher.end_session(other.id);
  CHECK(bench.store.segments() == 0);
}

TEST_CASE("dispatch: values that make no sense are invalid_argument, the text names the field") {
  Bench bench;
  SessionState& session = bench.join(kAlice);
  const auto refused = [&](CreateRequest request, std::uint64_t dim, const std::string& name,
                           const std::string& dtype, const std::string& attrs) {
    request.ndim = 1;
    request.name_bytes = static_cast<std::uint16_t>(name.size());
    request.dtype_bytes = static_cast<std::uint16_t>(dtype.size());
    request.attrs_bytes = static_cast<std::uint16_t>(attrs.size());
    const Reply reply = bench.ask(
        session, Op::create, Bench::text_of(request) + Bench::text_of(dim) + name + dtype + attrs);
    CHECK(bench.kept());
    CHECK(reply.is(ErrorCode::invalid_argument));
    return reply.body.substr(0, reply.body.find(':'));
  };
  CreateRequest request;
  request.bytes = 8;
  CHECK(refused(request, 1, "a b", "<f8", "") == "name");
  CHECK(refused(request, 1, "a", "<f9", "") == "dtype");
  CHECK(refused(request, 1, "a", "[('\xff', '<f8')]", "") == "dtype");
  CHECK(refused(request, 2, "a", "<f8", "") == "bytes");
  CHECK(refused(request, std::uint64_t{1} << 60, "a", "<f8", "") == "shape");
  CHECK(refused(request, 1, "a", "<f8", "[]") == "attrs");
  CHECK(refused(request, 1, "a", "<f8", "{\"a\":" + std::string(9, '[') + "}") == "attrs");
  CHECK(refused(request, 1, "a", "<f8", "{\"a\": \"" + std::string(5000, 'x') + "\"}") == "attrs");
  request.perms = 0777;
  CHECK(refused(request, 1, "a", "<f8", "") == "perms");
  request.perms = 0600;
  request.timeout_ms = -2;
  CHECK(refused(request, 1, "a", "<f8", "") == "timeout");
  request.timeout_ms = 0;
  request.ttl_ms = 5;
  CHECK(refused(request, 1, "a", "<f8", "") == "ttl");
  HandoverRequest handover{1, kGraceMsMax + 1};
  CHECK(bench.ask(session, Op::handover, Bench::text_of(handover)).is(ErrorCode::invalid_argument));
  CHECK(bench.store.segments() == 0);
}

TEST_CASE("dispatch: a handle of another store is not found") {
  Bench bench;
  SessionState& session = bench.join(kAlice);
  AttachRequest request;
  request.id = bench.put(session, "grid");
  request.access = 1;
  request.store_id = kStoreId;
  CHECK_FALSE(bench.ask(session, Op::attach, Bench::text_of(request)).header.status);
  request.store_id = kStoreId + 1;
  CHECK(bench.ask(session, Op::attach, Bench::text_of(request)).is(ErrorCode::not_found));
}

TEST_CASE("dispatch: memory that cannot be had leaves nothing behind") {
  Bench bench;
  SessionState& session = bench.join(kAlice);
  bench.store.failure = make_error(ErrorCode::no_capacity, "segments: all in use");
  const Reply reply = bench.create(session, "grid", 4096);
  CHECK(reply.is(ErrorCode::no_capacity));
  CHECK(reply.body == "segments: all in use");
  bench.store.failure.reset();
  CHECK_FALSE(bench.create(session, "grid", 4096).header.status);
}

TEST_CASE("dispatch: an allocation is given up when its session has gone") {
  Bench bench;
  SessionState& session = bench.join(kAlice);
  bench.store.hold = true;
  CHECK(bench.send(session, Op::create, Bench::create_text("grid", 4096)));
  bench.dispatcher.end_session(session.id);
  REQUIRE(bench.store.cancelled.size() == 1);
  // Once: nobody who lets something go pays for what others get.
  SessionState& other = bench.join(kAlice);
  bench.store.hold = false;
  const std::uint64_t id = bench.put(other, "own");
  CHECK_FALSE(bench.release(other, id, Access::read).header.status);
  bench.dispatcher.tick();
  CHECK(bench.store.cancelled.size() == 1);
  bench.store.finish();
  CHECK(bench.store.segments() == 0);
  CHECK(bench.dispatcher.selfcheck().empty());
}

TEST_CASE("dispatch: a descriptor that cannot be sent takes its grant back") {
  Bench bench;
  SessionState& session = bench.join(kAlice);
  const auto body = bench.create(session, "grid", 4096).fixed<ArrayBody>();
  const std::string frame =
      Bench::text_of(FrameHeader{static_cast<std::uint16_t>(Op::create), kFlagReply, 0, 2}) +
      Bench::text_of(body);
  const auto instead = bench.dispatcher.descriptor_failed(
      session.id, std::as_bytes(std::span(frame)), make_error(ErrorCode::no_capacity, "none"));
  FrameHeader header;
  REQUIRE(read_header(instead, header));
  CHECK(header.status == static_cast<std::uint32_t>(ErrorCode::no_capacity));
  CHECK(header.request == 2);
  CHECK(bench.store.segments() == 0);  // the creator's only grant: the draft is gone
}

TEST_CASE("dispatch: a full store looks for memory that nobody maps any more") {
  Bench bench;
  SessionState& session = bench.join(kAlice);
  bench.store.mapped = true;
  const auto first = bench.create(session, "a", 12 << 20).fixed<ArrayBody>();
  CHECK_FALSE(bench.release(session, first.id, Access::write).header.status);
  CHECK(bench.create(session, "b", 12 << 20).is(ErrorCode::no_capacity));
  bench.store.mapped = false;
  CHECK_FALSE(bench.create(session, "b", 12 << 20).header.status);
}

TEST_CASE("dispatch: an array without bytes needs room on the machine for its record") {
  Bench bench;
  SessionState& session = bench.join(kAlice);
  bench.store.record_failure = make_error(ErrorCode::no_capacity, "memory: none");
  CHECK(bench.create(session, "a", 0).is(ErrorCode::no_capacity));
  bench.store.record_failure.reset();
  CHECK_FALSE(bench.create(session, "a", 0).header.status);
}

TEST_CASE("dispatch: one user's creates that hope for room leave places for others") {
  Bench bench;
  SessionState& alice = bench.join(kAlice);
  SessionState& bob = bench.join(kBob);
  CHECK_FALSE(bench.create(alice, "a", 12 << 20).header.status);
  bench.store.freeing = kPageBytes;
  const auto hope = [&](SessionState& session, int n) {
    bench.mail.replies[session.id].clear();
    CHECK(bench.send(session, Op::create, Bench::create_text("n" + std::to_string(n), 12 << 20)));
    return bench.mail.replies[session.id].empty();
  };
  int waiting = 0;
  for (int n = 0; n < 2'000; ++n) waiting += hope(alice, n) ? 1 : 0;
  CHECK(waiting == 256);
  CHECK(hope(bob, 0));
}

TEST_CASE("dispatch: a create takes what a run that was broken off has left in flight") {
  Bench bench;
  SessionState& run = bench.join(kAlice);
  const auto held = bench.create(run, "a", 12 << 20).fixed<ArrayBody>();
  CHECK_FALSE(bench.seal(run, held.id).header.status);
  HandoverRequest sent;
  sent.id = held.id;
  CHECK_FALSE(bench.ask(run, Op::handover, Bench::text_of(sent)).header.status);
  SUBCASE("when nobody is left who could open it") {
    bench.dispatcher.end_session(run.id);
    CHECK_FALSE(bench.create(bench.join(kAlice), "b", 12 << 20).header.status);
  }
  SUBCASE("not while another of that user goes on, before it is asked to") {
    SessionState& other = bench.join(kAlice);
    bench.dispatcher.end_session(run.id);
    const Reply refused = bench.create(other, "b", 12 << 20);
    CHECK(refused.is(ErrorCode::no_capacity));
    CHECK_MESSAGE(has(refused.body, "held by hand-overs of ended pid"), refused.body);
    CHECK(has(bench.ask(other, Op::gc, "{}").body, R"("handovers_ended":1)"));
    CHECK_FALSE(bench.create(other, "b", 12 << 20).header.status);
  }
}

// -- admin plane ----------------------------------------------------------------------------------

TEST_CASE("dispatch: documents that are none end the session, wrong keys do not") {
  Bench bench;
  for (const std::string& text : {std::string("nonsense"), std::string("[]"), std::string("{"),
                                  std::string("\xff"), std::string(), std::string(60'000, '[')}) {
    SessionState& session = bench.join(kAlice);
    CHECK(bench.ask(session, Op::list, text).is(ErrorCode::protocol_error));
    CHECK_FALSE(bench.kept());
  }
  SessionState& session = bench.join(kAlice);
  const auto refused = [&](Op op, const std::string& text) {
    const Reply reply = bench.ask(session, op, text);
    CHECK(bench.kept());
    CHECK(reply.is(ErrorCode::invalid_argument));
    return reply.body.substr(0, reply.body.find(':'));
  };
  CHECK(refused(Op::list, R"({"limit": 0})") == "limit");
  CHECK(refused(Op::list, R"({"limit": 1e3})") == "limit");
  CHECK(refused(Op::list, R"({"prefix": 1})") == "prefix");
  CHECK(refused(Op::list, R"({"cursor": "junk"})") == "cursor");
  CHECK(refused(Op::list, R"({"prefiks": ""})") == "prefiks");
  CHECK(refused(Op::info, "{}") == "name");
  CHECK(refused(Op::info, R"({"name": "a", "id": "1"})") == "name");
  CHECK(refused(Op::info, R"({"name": "~me/a"})") == "name");
  CHECK(refused(Op::info, R"({"name": "a//b"})") == "name");
  CHECK(refused(Op::info, R"({"id": 5})") == "id");
  CHECK(refused(Op::info, R"({"id": "5x"})") == "id");
  CHECK(refused(Op::keep, R"({"name": "a", "ttl_s": -1})") == "ttl_s");
  CHECK(refused(Op::keep, R"({"name": "a", "ttl_s": 1e300})") == "ttl_s");
  CHECK(refused(Op::chmod, R"({"name": "a", "perms": "0777"})") == "perms");
  CHECK(refused(Op::chmod, R"({"name": "a"})") == "perms");
  CHECK(refused(Op::quotas, R"({"uid": -1})") == "uid");
  CHECK(refused(Op::status, R"({"x": 1})") == "x");
}

TEST_CASE("dispatch: a document ends where its text ends, not at a zero byte") {
  Bench bench;
  SessionState& alice = bench.join(kAlice);
  bench.put(alice, "x", "{}");
  using namespace std::string_literals;
  for (const std::string& text : {"{}\0garbage"s, "{}\0"s, "\0{}"s, "{\"attrs\":1}\0{}"s}) {
    CHECK(bench.ask(bench.join(kAlice), Op::status, text).is(ErrorCode::protocol_error));
    CHECK_FALSE(bench.kept());
    CHECK_FALSE(canonical_attrs(text).has_value());
  }
  CHECK(canonical_attrs("{\"a\":1}").value() == "{\"a\":1}");
}

TEST_CASE("dispatch: info and list say what an array is, names as the caller says them") {
  Bench bench;
  SessionState& alice = bench.join(kAlice);
  const std::uint64_t id = bench.put(alice, "sim/grid", R"({ "unit" : "K" })");
  const Reply info = bench.ask(alice, Op::info, R"({"name": "sim/grid"})");
  for (const char* part :
       {R"("attrs":{"unit":"K"})", R"("dtype":"|u1")", R"("kept":false)", R"("leases":1)",
        R"("name":"sim/grid")", R"("nbytes":4096)", R"("ns_uid":1000)", R"("order":"C")",
        R"("perms":"0600")", R"("seal":"soft")", R"("shape":[4096])", R"("state":"sealed")",
        R"("ttl_s":null)", R"("uid":1000)", R"("version":1)"}) {
    CAPTURE(info.body);
    CHECK(has(info.body, part));
  }
  CHECK(has(info.body, "\"id\":\"" + std::to_string(id) + "\""));
  const std::string by_id = R"({"id": ")" + std::to_string(id) + R"(", "store_id": "4711"})";
  CHECK(bench.ask(alice, Op::info, by_id).body == info.body);
  CHECK(bench.ask(alice, Op::info, R"({"id": ")" + std::to_string(id) + R"(", "store_id": "1"})")
            .is(ErrorCode::not_found));

  SessionState& root = bench.join(kRoot);
  CHECK(has(bench.ask(root, Op::info, R"({"name": "~1000/sim/grid"})").body,
            R"("name":"~1000/sim/grid")"));
  CHECK(has(bench.ask(root, Op::list, R"({"prefix": "~1000/sim/"})").body, "~1000/sim/grid"));
  CHECK(bench.ask(root, Op::list, R"({"prefix": "~1001/"})").body ==
        R"({"arrays":[],"cursor":null})");
  CHECK(has(bench.ask(alice, Op::holders, R"({"name": "sim/grid"})").body, R"("access":"r")"));
}

TEST_CASE("dispatch: a page of list fits into a frame whatever is in it") {
  Limits limits = Bench::default_limits();
  limits.capacity = 1 << 30;
  Bench bench(limits);
  SessionState& session = bench.join(kAlice);
  const std::string attrs = "{\"k\":\"" + std::string(3'000, 'x') + "\"}";
  constexpr int kArrays = 60;
  for (int n = 0; n < kArrays; ++n) bench.put(session, "a" + std::to_string(100 + n), attrs);
  int seen = 0;
  std::string cursor;
  do {
    const Reply page = bench.ask(session, Op::list, R"({"cursor": ")" + cursor + "\"}");
    REQUIRE_FALSE(page.header.status);
    CHECK(page.body.size() + sizeof(FrameHeader) <= kFrameBytesMax);
    const bool last = has(page.body, R"("cursor":null)");
    CHECK((last || page.body.size() + 2 * attrs.size() > kFrameBytesMax));  // One more would not.
    for (std::size_t at = 0; (at = page.body.find("\"name\":\"a1", at)) != std::string::npos;
         ++at) {
      ++seen;
    }
    const std::size_t at = page.body.find("\"cursor\":\"");
    cursor = at == std::string::npos
                 ? ""
                 : page.body.substr(at + 10, page.body.find('"', at + 10) - at - 10);
  } while (!cursor.empty());
  CHECK(seen == kArrays);
}

TEST_CASE("dispatch: what one admin request may take is bounded") {
  Bench bench;
  SessionState& session = bench.join(kAlice);
  for (int n = 0; n < 40; ++n) (void)bench.create(session, "a" + std::to_string(n), 0);
  const std::string page = bench.ask(session, Op::list, R"({"limit": 128})").body;
  std::size_t rows = 0;
  for (std::size_t at = 0; (at = page.find("\"name\":", at)) != std::string::npos; ++at) ++rows;
  CHECK(rows == 32);
  CHECK_FALSE(has(page, R"("cursor":null)"));
  std::string document = "{\"a\":[[]";
  while (document.size() < 9'000) document += ",[]";
  CHECK(bench.ask(session, Op::list, document + "]}").is(ErrorCode::invalid_argument));
  CHECK(bench.kept());
}

TEST_CASE("dispatch: list and info show attrs as they came in, once") {
  Bench bench;
  SessionState& session = bench.join(kAlice);
  bench.put(session, "with", R"({"z": [1, {"a": null}], "b": "x"})");
  bench.put(session, "without");
  const std::string attrs = R"({"attrs":{"b":"x","z":[1,{"a":null}]},"broken":null,)";
  const std::string list = bench.ask(session, Op::list, "{}").body;
  const std::string info = bench.ask(session, Op::info, R"({"name": "with"})").body;
  CHECK(info.starts_with(attrs));
  CHECK(has(list, info));
  CHECK(has(list, R"({"attrs":{},"broken":null,)"));
}

TEST_CASE("dispatch: keep, unkeep, chmod and remove") {
  Bench bench;
  SessionState& session = bench.join(kAlice);
  const std::uint64_t id = bench.put(session, "grid");
  const std::string name = R"({"name": "grid")";
  CHECK(has(bench.ask(session, Op::keep, name + R"(, "ttl_s": 1000})").body, R"("kept":true)"));
  CHECK(
      has(bench.ask(session, Op::chmod, name + R"(, "perms": "0400"})").body, R"("perms":"0400")"));
  CHECK(bench.ask(session, Op::unkeep, name + "}").body == "{}");
  CHECK(bench.ask(session, Op::keep, name + "}").header.status == 0);
  CHECK_FALSE(bench.release(session, id, Access::read).header.status);
  CHECK(bench.store.segments() == 1);
  CHECK(bench.ask(session, Op::remove, name + "}").body == "{}");
  CHECK(bench.store.segments() == 0);
  CHECK(bench.ask(session, Op::remove, name + "}").is(ErrorCode::not_found));
}

TEST_CASE("dispatch: status, metrics, selfcheck and gc") {
  Bench bench;
  SessionState& session = bench.join(kAlice);
  bench.store.mapped = true;
  const std::uint64_t id = bench.put(session, "grid");
  CHECK_FALSE(bench.release(session, id, Access::read).header.status);
  const Reply status = bench.ask(session, Op::status, "{}");
  for (const char* part :
       {R"("capacity":16777216)", R"("used":4096)", R"("pooled":0)", R"("pinned":4096)",
        R"("arrays":0)", R"("sessions":1)", R"("fds":3)", R"("fds_max":100)", R"("pid":1)",
        R"("store_id":"4711")", R"("version":)", R"("uptime_s":)", R"("bytes_max":16777216)"}) {
    CAPTURE(status.body);
    CHECK(has(status.body, part));
  }
  CHECK(bench.ask(session, Op::gc, "{}").body ==
        R"({"freed_bytes":0,"handovers_ended":0,"pinned_bytes":4096})");
  bench.store.mapped = false;
  CHECK(bench.ask(session, Op::gc, "{}").body ==
        R"({"freed_bytes":4096,"handovers_ended":0,"pinned_bytes":0})");
  CHECK(bench.ask(session, Op::selfcheck, "{}").body == R"({"clean":true,"problems":[]})");
  CHECK(has(bench.ask(session, Op::metrics, "{}").body, "# EOF"));
}

TEST_CASE("dispatch: quotas are seen by everybody, set by root and the daemon's own user") {
  Bench bench;
  SessionState& alice = bench.join(kAlice);
  CHECK(has(bench.ask(alice, Op::quotas, "{}").body, R"("uid":1000)"));
  const std::string set = R"({"uid": 1000, "bytes_max": 8192})";
  CHECK(bench.ask(alice, Op::quotas, set).is(ErrorCode::permission_denied));
  for (std::uint32_t uid : {kRoot, kDaemon}) {
    CHECK(has(bench.ask(bench.join(uid), Op::quotas, set).body, R"("bytes_max":8192)"));
  }
  CHECK(bench.create(alice, "big", 8192).is(ErrorCode::quota_exceeded));
  CHECK_FALSE(bench.create(alice, "small", 4096).header.status);
}

TEST_CASE("dispatch: watchers hear what they may read, and that they missed something") {
  Bench bench;
  SessionState& alice = bench.join(kAlice);
  SessionState& watcher = bench.join(kAlice);
  SessionState& bob = bench.join(kBob);
  CHECK(bench.ask(watcher, Op::watch, R"({"prefix": "sim/"})").body == "{}");
  CHECK(bench.ask(bob, Op::watch, "{}").body == "{}");
  const std::uint64_t request = watcher.last_request;
  auto& heard = bench.mail.replies[watcher.id];
  heard.clear();
  bench.put(alice, "other");
  CHECK(heard.empty());
  bench.put(alice, "sim/grid");
  REQUIRE(heard.size() == 2);
  CHECK(heard[0].header.op == static_cast<std::uint16_t>(Op::event));
  CHECK(heard[0].header.request == request);
  CHECK(has(heard[0].body, R"("event":"created")"));
  CHECK(has(heard[1].body, R"("event":"sealed")"));
  CHECK(has(heard[1].body, R"("name":"sim/grid")"));
  CHECK(bench.mail.replies[bob.id].size() == 1);

  bench.mail.full = true;
  bench.put(alice, "sim/missed");
  bench.mail.full = false;
  bench.put(alice, "sim/missed/too");
  CHECK(heard.size() == 2);
  bench.dispatcher.resume_watch(watcher.id);
  REQUIRE(heard.size() == 3);
  CHECK(heard[2].body == R"({"event":"lost"})");
  bench.put(alice, "sim/seen");
  CHECK(heard.size() == 5);

  bench.dispatcher.end_session(watcher.id);
  bench.put(alice, "sim/late");
  CHECK(heard.size() == 5);
}

TEST_CASE("dispatch: a session, and a user, may watch so often and no more") {
  Bench bench;
  for (int i = 0; i < 64; ++i) {
    SessionState& session = bench.join(kAlice);
    for (int n = 0; n < 16; ++n) CHECK(bench.ask(session, Op::watch, "{}").body == "{}");
    if (i == 0) CHECK(bench.ask(session, Op::watch, "{}").is(ErrorCode::quota_exceeded));
  }
  SessionState& one_more = bench.join(kAlice);
  const Reply refused = bench.ask(one_more, Op::watch, "{}");
  CHECK(refused.is(ErrorCode::quota_exceeded));
  CHECK(has(refused.body, "one user 1024"));
  CHECK(bench.ask(bench.join(kBob), Op::watch, "{}").body == "{}");
}
