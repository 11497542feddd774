#pragma once
// What src/core/tls*.cc share about OpenSSL: starting it, its objects as values, its errors as
// text. Owner: core/tls. Any thread.
#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>

#include <memory>
#include <string>

namespace blk::tls {

// Frees any OpenSSL object by its own function.
template <auto Free>
struct Freer {
  template <typename T>
  void operator()(T* object) const {
    Free(object);
  }
};
template <typename T, auto Free>
using Handle = std::unique_ptr<T, Freer<Free>>;
using SslHandle = Handle<SSL, SSL_free>;

// Before the first use of anything of OpenSSL. Its configuration files are not read: they could
// load code.
void StartOpenSsl();

// The reason of the newest error in this thread's queue, in words; empties the queue.
std::string TakeReason();

}  // namespace blk::tls
