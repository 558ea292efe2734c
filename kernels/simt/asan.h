// Defines BNBX_ASAN under AddressSanitizer.
#pragma once

#if defined(__SANITIZE_ADDRESS__)
#define BNBX_ASAN
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define BNBX_ASAN
#endif
#endif
