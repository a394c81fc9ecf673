"""Names of the classes of data sets, in the order of their label numbers."""

# PASCAL VOC: 0 is the background, 255 in a mask is void.
VOC_CLASSES = (
    "background",
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)

# COCO-Stuff-27 (Ji et al., IIC, ICCV 2019): 12 supercategories of things, then 15 of stuff.
COCO_STUFF_27_CLASSES = (
    *("electronic", "appliance", "food-thing", "furniture-thing", "indoor", "kitchen"),
    *("accessory", "animal", "outdoor", "person", "sports", "vehicle"),
    *("ceiling", "floor", "food-stuff", "furniture-stuff", "rawmaterial", "textile", "wall", "window"),
    *("building", "ground", "plant", "sky", "solid", "structural", "water"),
)

# Cityscapes label ids 7 to 33 (Cordts et al., CVPR 2016).
CITYSCAPES_27_CLASSES = (
    *("road", "sidewalk", "parking", "rail track", "building", "wall", "fence", "guard rail", "bridge", "tunnel"),
    *("pole", "polegroup", "traffic light", "traffic sign", "vegetation", "terrain", "sky", "person", "rider"),
    *("car", "truck", "bus", "caravan", "trailer", "train", "motorcycle", "bicycle"),
)

POTSDAM_3_CLASSES = ("roads and cars", "buildings and clutter", "vegetation and trees")
