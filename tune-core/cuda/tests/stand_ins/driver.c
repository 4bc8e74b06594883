// A driver that answers what the environment says, for tests on machines without a card.
#include <stdlib.h>
#include <string.h>

static int number(const char *name, int otherwise) {
    const char *value = getenv(name);
    return value ? atoi(value) : otherwise;
}

int cuInit(unsigned flags) { return number("STAND_IN_INIT", 0); }
int cuDriverGetVersion(int *version) { return *version = number("STAND_IN_VERSION", 13000), 0; }
int cuDeviceGetCount(int *count) { return *count = number("STAND_IN_CARDS", 1), 0; }
int cuDeviceGet(int *device, int ordinal) { return *device = ordinal, 0; }
int cuDeviceGetName(char *name, int length, int device) { return strncpy(name, "Stand-in", length), 0; }
int cuDeviceTotalMem_v2(size_t *bytes, int device) { return *bytes = (size_t)1 << 34, 0; }
int cuDeviceGetAttribute(int *value, int attribute, int device) {
    switch (attribute) {
    case 75: return *value = number("STAND_IN_MAJOR", 9), 0;
    case 76: return *value = number("STAND_IN_MINOR", 0), 0;
    case 102: return *value = number("STAND_IN_MAPS", 1), 0;
    default: return *value = 100, 0;
    }
}
int cuDevicePrimaryCtxRetain(void **context, int device) { return number("STAND_IN_OPEN", 0); }
int cuGetErrorName(int error, const char **name) { return *name = "CUDA_ERROR_STAND_IN", 0; }
int cuGetErrorString(int error, const char **words) { return *words = "a stand-in's words", 0; }
